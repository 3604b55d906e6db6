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

# Refused with one line and the usage code.
code=0
"$degu" generate "$work/run" --prompts "$work/prompts.txt" --top-p 3 >/dev/null 2>"$work/error.txt" || code=$?
[[ $code == 2 && $(wc -l <"$work/error.txt") -le 2 ]] && grep -q top_p "$work/error.txt"
code=0
"$degu" generate "$work/run" --prompt "$(printf 'ab %.0s' {1..400})" >/dev/null 2>"$work/error.txt" || code=$?
[[ $code == 2 ]] && grep -q context "$work/error.txt"
echo "serving: all well"
