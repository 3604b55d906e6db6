#!/usr/bin/env bash
# Links are measured, a layout is planned with them, and the planned run trains as it is. Rows may travel in two
# stages.
#   layout_test.sh DEGU FOLDER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare_words 1000
cat >"$work/run.yaml" <<YAML
model: {vocab: 512, width: 64, layers: 2, heads: 2, moe: {experts: 4, top_k: 2}}
data: {paths: [$work/data], sequence_length: 64, validation_tokens: 2048}
train: {batch_sequences: 16, steps: 4}
cluster: {threads: 1}
YAML

mpirun -n 2 "$degu" bench comm --most 4194304 --threads 1 --out "$work/cluster.yaml" >"$work/comm.txt"
[[ $(grep -c all_to_all "$work/comm.txt") -ge 5 ]] || fail "the all-to-all was not measured over its sizes"
code=0
"$degu" bench comm 2>"$work/error.txt" || code=$?
[[ $code == 2 ]] && grep -q mpirun "$work/error.txt" || fail "bench comm on one rank was not refused"
code=0
mpirun -n 2 "$degu" bench memory 2>"$work/error.txt" || code=$?
[[ $code == 2 ]] && grep -q "one rank" "$work/error.txt" || fail "bench memory on two ranks was not refused"

"$degu" plan --train "$work/run.yaml" --cluster "$work/cluster.yaml" --out "$work/planned.yaml" --json >"$work/plan.json"
mpirun -n 2 "$degu" train "$work/planned.yaml" --out "$work/planned" 2>"$work/train.log"
/usr/bin/python3 - "$work/plan.json" "$work/train.log" <<'PY' || fail "the plan and the run do not agree"
import json
import re
import sys

plan = json.load(open(sys.argv[1]))
assert plan["ranks"] == 2 and plan["steps"] == 4, plan
assert {layout["expert_parallel"] for layout in plan["layouts"]} == {1, 2}, plan
of_the_run = float(re.search(r"memory: ([0-9.]+) MB planned", open(sys.argv[2]).read()).group(1))
planned = plan["layouts"][0]["memory"]["total"] / 1e6
assert abs(of_the_run - planned) < 0.06, (of_the_run, planned)
PY

# Four ranks said to be two nodes: rows in two stages, measured and trained with, and the same losses.
two_nodes=(mpirun -n 4 --oversubscribe -x DEGU_RANKS_PER_NODE=2 "$degu")
"${two_nodes[@]}" bench comm --most 65536 --threads 1 >"$work/comm.txt"
[[ $(grep -c "all_to_all, two stages" "$work/comm.txt") == 3 ]] || fail "two stages were not measured over their sizes"
for way in direct two_stage; do
  "${two_nodes[@]}" train "$work/run.yaml" --out "$work/$way" --set cluster.expert_parallel=4 \
    --set cluster.all_to_all=$way --json >"$work/$way.json" 2>"$work/$way.log"
done
grep -q "2 nodes: experts' rows travel directly" "$work/direct.log" || fail "the direct way was not said"
grep -q "2 nodes: experts' rows travel in two stages" "$work/two_stage.log" || fail "two stages were not said"
/usr/bin/python3 - "$work/direct" "$work/two_stage" <<'PY' || fail "rows in two stages changed the losses"
import json
import sys

direct, staged = ([json.loads(line) for line in open(f"{folder}/metrics.jsonl")] for folder in sys.argv[1:])
losses = [[(line["step"], line["loss"]) for line in run if "loss" in line] for run in (direct, staged)]
assert losses[0] and losses[0] == losses[1], losses
PY
code=0
mpirun -n 2 "$degu" train "$work/run.yaml" --out "$work/none" --set cluster.expert_parallel=2 \
  --set cluster.all_to_all=two_stage 2>"$work/error.txt" || code=$?
[[ $code == 2 ]] && grep -q "ranks 0 to 1: all are on one node; use auto or direct" "$work/error.txt" ||
  fail "two stages on one node were not refused"

# Too little memory: said, with a remedy, and nothing is written.
sed -i 's/^  memory: .*/  memory: 1000/' "$work/cluster.yaml"
code=0
"$degu" plan --train "$work/run.yaml" --cluster "$work/cluster.yaml" --out "$work/none.yaml" >/dev/null 2>"$work/error.txt" || code=$?
[[ $code == 2 && ! -e "$work/none.yaml" ]] && grep -q "no layout fits" "$work/error.txt" || fail "a plan that fits nowhere was accepted"
echo "layout: all well"
