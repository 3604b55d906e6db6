#!/usr/bin/env bash
# Sweeps from the outside: killed at any moment and resumed they lose no finished run and train none twice; runs
# that cannot be or diverge are recorded; a trunk's members have the bits of runs without it; fits and plans read
# what a sweep leaves.
#   sweep_test.sh DEGU FOLDER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

/usr/bin/python3 - "$work/text/words.txt" <<'PY'
import random
import sys

# Each word has four words that may follow it: there is something to learn, and more of it for a larger model.
random.seed(3)
words = ["".join(random.choices("abcdefgh", k=random.randint(2, 6))) for _ in range(600)]
after = {word: random.choices(words, k=4) for word in words}
with open(sys.argv[1], "w") as file:
    for _ in range(3000):
        line = [random.choice(words)]
        while len(line) < 40:
            line.append(random.choices(after[line[-1]], weights=(8, 4, 2, 1))[0])
        file.write(" ".join(line) + "\n\n")
PY
prepare_text

common() {
  cat <<YAML
model: {vocab: 512, mup_base_width: 64}
data: {paths: [$work/data], sequence_length: 64, validation_tokens: 2048}
cluster: {threads: 1}
YAML
}
# Two budgets of a decaying schedule, three sizes, each size one trunk.
{
  echo "sweep:"
  echo "  {budgets: [8e9, 2.4e10], head_width: 16, share_trunks: true,"
  echo "   sizes: [{width: 16, layers: 1}, {width: 32, layers: 1}, {width: 48, layers: 1}]}"
  common
  echo "train:"
  echo "  {batch_sequences: 8, checkpoint_every: 20, log_every: 1,"
  echo "   optimizer: {schedule: {kind: wsd, warmup: 0.1, decay: 0.2}}}"
} >"$work/trunks.yaml"

# results FOLDER: what a run's record must not change by, one line per finished run
results() {
  /usr/bin/python3 - "$1/runs.csv" <<'PY'
import csv
import sys

rows = list(csv.DictReader(open(sys.argv[1])))
names = [row["run"] for row in rows]
assert len(names) == len(set(names)), f"a run is in the table twice: {names}"
for row in sorted(rows, key=lambda row: row["run"]):
    print(row["run"], row["config_hash"], row["status"], row["tokens"], row["flops"], row["val_loss"])
PY
}

mpirun -n 2 "$degu" sweep "$work/trunks.yaml" --out "$work/whole" 2>"$work/whole.log" ||
  { cat "$work/whole.log"; fail "the sweep failed"; }
results "$work/whole" >"$work/whole.txt"
[[ $(grep -c " done " "$work/whole.txt") == 6 ]] || { cat "$work/whole.log"; fail "6 runs should be done"; }

# A member that decayed from its trunk has the bits of the same run trained alone.
for run in "$work"/whole/runs/c8e+09-*; do
  name="$(basename "$run")"
  "$degu" train "$run/config.yaml" --out "$work/alone/$name" 2>>"$work/alone.log"
  /usr/bin/python3 - "$run" "$work/alone/$name" <<'PY'
import json
import sys

def last(folder):
    steps = {}
    for line in map(json.loads, open(f"{folder}/metrics.jsonl")):
        steps[line["step"], "validation" in line] = line.get("validation") or (line["loss"], line["gradient_norm"])
    return steps

trunk, alone = last(sys.argv[1]), last(sys.argv[2])
assert min(step for step, _ in trunk) > 20, "the member did not start from its trunk"
assert len(trunk) >= 8 and all(alone[key] == value for key, value in trunk.items()), "bits differ"
PY
done
echo "trunks: members have the bits of runs without a trunk"

# SIGKILL to everything at moments spread over the sweep. A finished run stays as it is.
kills=0
: >"$work/before.txt"
for attempt in $(seq 1 60); do
  setsid mpirun -n "$((attempt % 2 + 1))" "$degu" sweep "$work/trunks.yaml" --out "$work/killed" --retry-failed \
    2>>"$work/killed.log" &
  job=$!
  if ((kills < 6)); then
    if kill_after "$((attempt * 29 % 2)).$((attempt * 37 % 90 + 10))" $job "$work/killed"; then kills=$((kills + 1)); fi
    wait $job 2>/dev/null || true
  else
    wait $job || { tail "$work/killed.log"; fail "a start after the kills failed"; }
  fi
  [[ -f "$work/killed/runs.csv" ]] || continue
  results "$work/killed" | grep " done " >"$work/after.txt" || true
  [[ -z "$(comm -23 "$work/before.txt" "$work/after.txt")" ]] || fail "a finished run was lost or changed"
  cp "$work/after.txt" "$work/before.txt"
  [[ $(wc -l <"$work/after.txt") == 6 ]] && break
done
((kills > 0)) || fail "no kill came before the sweep was complete: nothing was tested"
diff "$work/whole.txt" "$work/before.txt" || fail "the killed sweep's results differ"
for run in "$work"/killed/runs/*/metrics.jsonl; do
  /usr/bin/python3 - "$run" <<'PY'
import json
import sys

steps = [line["step"] for line in map(json.loads, open(sys.argv[1])) if "validation" not in line]
assert steps == list(range(steps[0], steps[-1] + 1)), f"{sys.argv[1]}: a step is missing or there twice"
PY
done
echo "killed $kills times: same results, no run lost or twice"

# A rate that diverges, an impossible member: recorded, by all ranks of the run, and the others are trained.
{
  echo "sweep:"
  echo "  {budgets: [2e9], head_width: 16, ranks_per_run: 2, learning_rates: [0.01, 1e30],"
  echo "   sizes: [{width: 32, layers: 1}], members: [{name: dense}, {name: e4k8, experts: 4, top_k: 8}]}"
  common
  echo "train: {batch_sequences: 8, max_bad_steps: 3, optimizer: {clip: 0}}"
} >"$work/bad.yaml"
mpirun -n 4 "$degu" sweep "$work/bad.yaml" --out "$work/bad" --json >"$work/bad.json" 2>"$work/bad.log" ||
  { cat "$work/bad.log"; fail "a sweep with bad runs failed"; }
/usr/bin/python3 - "$work" <<'PY'
import csv
import json
import sys

counts = json.load(open(f"{sys.argv[1]}/bad.json"))["status"]
assert counts == {"done": 1, "diverged": 1, "invalid": 2}, counts
rows = {row["run"]: row for row in csv.DictReader(open(f"{sys.argv[1]}/bad/runs.csv"))}
assert "finite" in rows["c2e+09-d32-l1-dense-lr1e+30-s1"]["reason"], rows
assert "top_k" in rows["c2e+09-d32-l1-e4k8-lr0.01-s1"]["reason"], rows
PY
echo "diverged and impossible runs are recorded"

# Seeds give the noise, curves the envelope, hours and a machine the plan.
{
  echo "sweep:"
  echo "  {budgets: [1.5e9, 6e9, 2.4e10], head_width: 16, seeds: [1, 2],"
  echo "   sizes: [{width: 16, layers: 1}, {width: 32, layers: 1}, {width: 48, layers: 1}, {width: 64, layers: 1}]}"
  common
  echo "train: {batch_sequences: 4, log_every: 1, evaluate_every: 5, optimizer: {learning_rate: 0.01}}"
} >"$work/fits.yaml"
mpirun -n 2 "$degu" sweep "$work/fits.yaml" --out "$work/fits" 2>"$work/fits.log" ||
  { cat "$work/fits.log"; fail "the sweep with seeds failed"; }
"$degu" fit "$work/fits" --approach 2 --edge force --bootstrap 100 --json >"$work/fit2.json" 2>>"$work/fits.log"
for curves in training validation; do
  "$degu" fit "$work/fits" --approach 1 --curves $curves --edge force --json \
    >"$work/fit1-$curves.json" 2>>"$work/fits.log" || { tail "$work/fits.log"; fail "no fit of the $curves curves"; }
done
"$degu" fit "$work/fits" --bootstrap 50 --force --out "$work/fit3.json" >>"$work/fits.log" 2>&1
echo "bf16_flops: 2e11" >"$work/HW.yaml"
"$degu" plan --fit "$work/fit3.json" --hours 0.001 --hardware "$work/HW.yaml" --price-per-hour 100 --json \
  --out "$work/planned.yaml" >"$work/plan.json" 2>>"$work/fits.log" || { tail "$work/fits.log"; fail "no plan"; }
"$degu" train "$work/planned.yaml" --out "$work/planned" --json >"$work/planned.json" 2>>"$work/fits.log"
/usr/bin/python3 - "$work" <<'PY'
import json
import sys

def load(name):
    return json.load(open(f"{sys.argv[1]}/{name}.json"))

two = load("fit2")
assert two["seed_sigma"] > 0 and "seed replicates" in two["choices"]["bootstrap"], two["choices"]
for kind in ("training", "validation"):
    one = load(f"fit1-{kind}")
    assert one["approach"] == 1 and one["n_points"] > 24 * 4 and kind in one["choices"]["curves"], one["choices"]
plan, planned = load("plan"), load("planned")
best = plan["best"]
assert abs(best["hours"] / 0.001 - 1) < 1e-6 and abs(best["money"] / 0.1 - 1) < 1e-6, best
share = best["training_flops"] / (0.001 * 3600 * 2e11)
seen = [point[1] for point in load("fit3")["sweep"]["utilisation"]]
assert 0.9 * min(seen) <= share <= 1.1 * max(seen), (share, min(seen), max(seen))
assert abs(planned["flops"] / best["training_flops"] - 1) < 0.03, (planned["flops"], best)
PY
echo "seeds give sigma, curves an envelope; planned for hours and trained"
echo "all passed"
