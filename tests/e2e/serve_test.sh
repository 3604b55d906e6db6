#!/usr/bin/env bash
# A trained checkpoint serves with the bits of its training, and its text depends on the request alone.
#   serve_test.sh DEGU FOLDER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare_words 1500
cat >"$work/run.yaml" <<YAML
model: {vocab: 512, width: 64, layers: 2, heads: 2, moe: {experts: 4, top_k: 2}}
data: {paths: [$work/data], sequence_length: 128, validation_tokens: 2048}
train: {batch_sequences: 8, steps: 40, checkpoint_every: 20, balance: {aux_loss: 0.01}}
cluster: {threads: 1}
YAML
"$degu" train "$work/run.yaml" --out "$work/run"

# same_bits COMMAND…: prints JSON with comparisons and no mismatch
same_bits() {
  "$@" >"$work/parity.json"
  /usr/bin/python3 - "$work/parity.json" <<'PY'
import json
import sys

report = json.load(open(sys.argv[1]))
assert report["mismatches"] == 0 and report["comparisons"] > 5000, report
print(f"{report['comparisons']} comparisons on {report['ranks']} ranks, kv {report['kv']}: equal")
PY
}
same_bits "$degu" parity "$work/run" --rounds 1 --json
same_bits "$degu" parity "$work/run" --rounds 1 --kv int8 --json
same_bits mpirun -n 2 "$degu" parity "$work/run" --rounds 1 --json

# texts OUT OPTIONS…: the answers alone, as JSON lines
printf 'abc def\nfed cba ab\ngh\nabc def\n' >"$work/prompts.txt"
texts() {
  local out="$1"
  shift
  "$@" generate "$work/run" --prompts "$work/prompts.txt" --max-tokens 50 --seed 4 --ignore-eos --json "${extra[@]}" \
    >"$work/answer.json"
  /usr/bin/python3 -c 'import json, sys; [print(a["text"].encode()) for a in json.load(open(sys.argv[1]))["answers"]]' \
    "$work/answer.json" >"$out"
}
extra=()
texts "$work/plain.txt" "$degu"
[[ $(sort -u "$work/plain.txt" | wc -l) == 3 ]] || fail "four prompts, two of them equal, must give three texts"
for options in "--max-running 1" "--threads 2 --pass-tokens 16" "--kv-tokens 128" "--no-prefix-cache" "--speculate ngram --fixed-depth" \
  "--draft $work/run/checkpoints/step-00000020 --fixed-depth --depth 3"; do
  read -ra extra <<<"$options"
  texts "$work/other.txt" "$degu"
  cmp "$work/plain.txt" "$work/other.txt" || fail "other text with $options"
done
extra=()
texts "$work/other.txt" mpirun -n 2 "$degu"
cmp "$work/plain.txt" "$work/other.txt" || fail "other text on two ranks"

# Routes: one line per token, one list per MoE layer, K experts each.
"$degu" generate "$work/run" --prompt "abc" --max-tokens 5 --routes "$work/routes.jsonl" >/dev/null
/usr/bin/python3 - "$work/routes.jsonl" <<'PY'
import json
import sys

lines = [json.loads(line) for line in open(sys.argv[1])]
assert len(lines) > 2, lines
for line in lines[:-1]:
    assert [len(layer) for layer in line["experts"]] == [2, 2], line
PY

# Replayed, they are what training would choose: the same loss, none rerouted.
"$degu" eval "$work/run" --replay "$work/routes.jsonl" --json >"$work/replay.json"
/usr/bin/python3 - "$work/replay.json" <<'PY'
import json
import sys

replay = json.load(open(sys.argv[1]))
assert replay["loss"] == replay["replayed_loss"] > 0 and replay["rerouted_tokens"] == 0, replay
assert replay["recorded_tokens"] == replay["tokens"] > 2, replay
PY

# What `plan --serve` says before anything is loaded is what serving then takes; scratch stays within its bound.
for ranks in 1 2; do
  run=("$degu")
  ((ranks == 1)) || run=(mpirun -n "$ranks" "$degu")
  "$degu" plan --serve "$work/run" --ranks "$ranks" --running 3 --json >"$work/plan.json"
  "${run[@]}" generate "$work/run" --prompts "$work/prompts.txt" --max-tokens 50 --kv-tokens 384 --json >"$work/answer.json"
  /usr/bin/python3 - "$work/plan.json" "$work/answer.json" <<'PY'
import json
import sys

plan, answer = (json.load(open(path)) for path in sys.argv[1:])
planned = plan["schemes"][0]["ranks"][0]
memory = answer["memory"]
for part in ("weights", "workspace", "cache", "cache_per_token"):
    assert planned[part] == memory[part] > 0, (part, planned, memory)
assert 0 < memory["scratch_peak"] <= memory["scratch"], memory
assert memory["predicted"] == sum(memory[p] for p in ("weights", "workspace", "scratch", "cache", "draft")), memory
assert memory["resident"] > memory["weights"], memory
PY
done
"$degu" plan --serve "$work/run" --routes "$work/routes.jsonl" --ranks 2 --json | grep -q share_of_rows

# Experts on ranks by how often they are taken: from the run's own metrics, from routes, from a file. Texts, chosen experts and parity stay.
"$degu" plan --serve "$work/run" --ranks 2 --out "$work/placement.yaml" --measure --json >"$work/plan.json"
/usr/bin/python3 - "$work/plan.json" "$work/run/metrics.jsonl" <<'PY'
import json
import sys

plan = json.load(open(sys.argv[1]))
measured, placement = plan["measured"], plan["placement"]
for rank in measured["ranks"]:
    assert 0.5 < rank["weights"]["measured"] / rank["weights"]["predicted"], measured
    assert rank["weights"]["measured"] < rank["weights"]["predicted"] + 2**24, measured
# Blocks of memory begin and end with huge pages: two ranks have four of them each.
assert 0 < measured["pass"]["measured"] < measured["pass"]["predicted"] + 2 * 4 * 2**21, measured
steps = [line for line in map(json.loads, open(sys.argv[2])) if "layers" in line]
newest = steps[-((len(steps) + 9) // 10):]
contiguous = placed = mean = 0
for l, layer in enumerate(placement["layers"]):
    rows = [sum(step["layers"][l]["load"][e] for step in newest) for e in range(4)]
    assert layer["rows"] == rows and sorted(sum(layer["experts"], [])) == [0, 1, 2, 3], layer
    best = min(max(rows[0] + rows[e], sum(rows) - rows[0] - rows[e]) for e in (1, 2, 3))
    busiest = max(sum(rows[e] for e in experts) for experts in layer["experts"])
    assert busiest == best, (layer, best)
    contiguous, placed, mean = contiguous + max(sum(rows[:2]), sum(rows[2:])), placed + busiest, mean + sum(rows) / 2
assert abs(placement["imbalance"]["contiguous"] - contiguous / mean) < 1e-9, placement
assert abs(placement["imbalance"]["placed"] - placed / mean) < 1e-9, placement
print("rows of the busiest rank over the mean:", placement["imbalance"])
PY
printf 'ranks: 2\nlayers:\n  - layer: 0\n    experts: [3, 0, 2, 1]\n  - layer: 1\n    experts: [1, 3, 0, 2]\n' >"$work/shuffled.yaml"
mpirun -n 2 "$degu" generate "$work/run" --prompt "abc" --max-tokens 5 --placement "$work/shuffled.yaml" \
  --routes "$work/placed.jsonl" >/dev/null 2>"$work/log.txt"
cmp "$work/routes.jsonl" "$work/placed.jsonl" || fail "other experts with a placement"
[[ $(grep -c 'memory of rank [01]: weights .* measured' "$work/log.txt") == 2 ]] || fail "no memory of both ranks"
for placement in "auto" "$work/placement.yaml" "$work/shuffled.yaml" "auto --frequencies $work/routes.jsonl"; do
  read -ra extra <<<"--placement $placement"
  texts "$work/other.txt" mpirun -n 2 "$degu"
  cmp "$work/plain.txt" "$work/other.txt" || fail "other text with $placement"
  same_bits mpirun -n 2 "$degu" parity "$work/run" --rounds 1 --json "${extra[@]}"
done
extra=(--placement "$work/shuffled.yaml")
texts "$work/other.txt" "$degu"
cmp "$work/plain.txt" "$work/other.txt" || fail "other text with a placement on one rank"
for ranks in 1 2; do
  mpirun -n "$ranks" "$degu" eval "$work/run" --expert-parallel "$ranks" --validation-tokens 1024 --json "${extra[@]}" >"$work/eval-$ranks.json"
done
"$degu" eval "$work/run" --validation-tokens 1024 --json >"$work/eval.json"
cmp "$work/eval.json" "$work/eval-1.json" && cmp "$work/eval.json" "$work/eval-2.json" || fail "other losses with a placement"
extra=()

# refused CODE WORDS COMMAND…: one line that has the words
refused() {
  local code=0
  "${@:3}" >/dev/null 2>"$work/error.txt" || code=$?
  [[ $code == "$1" ]] && grep -q "$2" "$work/error.txt" || fail "code $code, not $1 and '$2': $(cat "$work/error.txt")"
}
cp -r "$work/run/checkpoints/step-00000040" "$work/alone"
refused 2 'nobody measured .* --frequencies FILE' mpirun -n 2 "$degu" generate "$work/alone" --prompt abc --placement auto
refused 2 'nobody measured .* --frequencies FILE' "$degu" plan --serve "$work/alone" --ranks 2 --out "$work/none.yaml"
refused 2 'one rank holds all experts' "$degu" plan --serve "$work/run" --out "$work/none.yaml"
sed 's/3, 0, 2, 1/3, 1, 2, 1/' "$work/shuffled.yaml" >"$work/twice.yaml"
head -n 4 "$work/shuffled.yaml" >"$work/short.yaml"
refused 2 'twice.yaml:4: experts names 1 twice' "$degu" generate "$work/run" --prompt abc --placement "$work/twice.yaml"
refused 2 'layer 1 is missing' mpirun -n 2 "$degu" generate "$work/run" --prompt abc --placement "$work/short.yaml"
refused 3 'takes contiguous, auto or a file' "$degu" generate "$work/run" --prompt abc --placement atuo
"$degu" plan --serve "$work/alone" --ranks 2 | grep -q 'with --frequencies FILE'
! "$degu" plan --serve "$work/run" --ranks 3 2>"$work/error.txt" || { echo "4 experts went over 3 ranks"; exit 1; }
grep -q 'shared evenly' "$work/error.txt"

# A conversation: forgotten means forgotten, and the end of input ends it.
printf 'abc def\n/reset\nabc def\nabc def\n' | "$degu" chat "$work/run" --temperature 0 --max-tokens 6 >"$work/chat.txt" 2>/dev/null
[[ $(grep -c '' "$work/chat.txt") -ge 3 ]]
printf 'abc def\n/quit\nnever read\n' | "$degu" chat "$work/run" --temperature 0 --max-tokens 6 >"$work/short.txt" 2>/dev/null
cat "$work/short.txt" "$work/short.txt" >"$work/twice.txt"
cmp -n "$(stat -c %s "$work/twice.txt")" "$work/chat.txt" "$work/twice.txt" || { echo "after /reset the chat answers otherwise"; exit 1; }

# Two ways to serve, profiled without data; the second profile finds the quantized weights of the first.
profile=("$degu" profile "$work/run" --levels bf16,int8 --batch 1,2 --prompt-tokens 20 --max-tokens 4 --repetitions 1
  --price-per-hour 2 --no-quality --out "$work/profile" --json)
"${profile[@]}" >"$work/profile.json"
"${profile[@]}" >"$work/profile.json" 2>"$work/log.txt"
grep -q 'is there' "$work/log.txt"
/usr/bin/python3 - "$work/profile.json" <<'PY'
import json
import sys

profile = json.load(open(sys.argv[1]))
assert [level["level"] for level in profile["levels"]] == ["bf16", "int8"]
for level in profile["levels"]:
    assert "quality" not in level and [b["batch"] for b in level["batches"]] == [1, 2]
    for b in level["batches"]:
        # 2 an hour, whatever the speed
        assert abs(b["cost_per_million_output_tokens"] * b["decode_tokens_per_second"] / 1e6 * 3600 - 2) < 1e-9, b
assert "recommended" not in profile
PY

# Decoding with drafts, of an n-gram table and of the model itself, gives plain decoding's text (or the command fails).
"$degu" bench speculation "$work/run" --draft "$work/run" --pairs 2 --prompt-tokens 24 --max-tokens 8 --streams 1,2 --json >"$work/speculation.json"
/usr/bin/python3 - "$work/speculation.json" <<'PY'
import json
import sys

cases = json.load(open(sys.argv[1]))["cases"]
assert len(cases) == 2 * 3 * 2 * 2 and {c["drafter"] for c in cases} == {"ngram", "draft"}
for c in cases:
    assert 0 < c["lo"] <= c["ratio"] <= c["hi"] and c["mean_depth"] >= 0, c
PY

# Refused with one line and the usage code.
code=0
"$degu" generate "$work/run" --prompts "$work/prompts.txt" --top-p 3 >/dev/null 2>"$work/error.txt" || code=$?
[[ $code == 2 && $(wc -l <"$work/error.txt") -le 2 ]] && grep -q top_p "$work/error.txt"
code=0
"$degu" generate "$work/run" --prompt "$(printf 'ab %.0s' {1..400})" >/dev/null 2>"$work/error.txt" || code=$?
[[ $code == 2 ]] && grep -q context "$work/error.txt"
echo "serving: all well"
