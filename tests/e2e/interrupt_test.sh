#!/usr/bin/env bash
# A run that is killed at any moment, or asked to stop, and resumed ends with the bits of one that was not.
#   interrupt_test.sh DEGU FOLDER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare_words 3000
cat >"$work/run.yaml" <<YAML
model: {vocab: 512, width: 64, layers: 2, heads: 2, moe: {experts: 4, top_k: 2}}
data: {paths: [$work/data], sequence_length: 64, validation_tokens: 2048}
train:
  {batch_sequences: 16, steps: 150, checkpoint_every: 10, log_every: 1, balance: {aux_loss: 0.01, bias_update: 0.001}}
cluster: {threads: 1}
YAML

# losses FOLDER: every step's loss and norm and the validation, one line each
losses() {
  /usr/bin/python3 - "$1/metrics.jsonl" <<'PY'
import json
import sys

for line in map(json.loads, open(sys.argv[1])):
    print(line["step"], line.get("loss"), line.get("gradient_norm"), line.get("validation"))
PY
}

"$degu" train "$work/run.yaml" --out "$work/whole"
losses "$work/whole" >"$work/whole.txt"
[[ $(wc -l <"$work/whole.txt") == 151 ]] || fail "expected 150 steps and a validation"

# SIGKILL at moments spread over the run, each resume on another layout.
kills=0
layouts=("-n 1" "-n 2" "-n 2 --ep" "-n 1")
for attempt in $(seq 1 40); do
  layout=(${layouts[$((attempt % 4))]})
  extra=()
  [[ "${layout[2]:-}" == --ep ]] && extra=(--set cluster.expert_parallel=2)
  # A session of its own, so that the kill reaches mpirun and all ranks at once.
  setsid mpirun -n "${layout[1]}" "$degu" train "$work/run.yaml" --out "$work/killed" --resume "${extra[@]}" \
    2>>"$work/killed.log" &
  job=$!
  if ((kills < 5)); then
    if kill_after "$((attempt % 3)).$((attempt * 37 % 100))" $job "$work/killed"; then kills=$((kills + 1)); fi
    wait $job 2>/dev/null || true
  else
    wait $job
  fi
  [[ -f "$work/killed/result.json" ]] && break
done
[[ -f "$work/killed/result.json" ]] || { tail "$work/killed.log"; fail "the killed run never completed"; }
((kills > 0)) || fail "no kill came before the run was complete: nothing was tested"
losses "$work/killed" | diff "$work/whole.txt" - || fail "the killed run differs"
echo "killed $kills times: same bits"

# SIGUSR1 and SIGTERM to mpirun: a checkpoint, then exit code 75.
for signal in USR1 TERM; do
  folder="$work/stopped_$signal"
  mpirun -n 2 "$degu" train "$work/run.yaml" --out "$folder" --set train.steps=100000 2>"$folder.log" &
  job=$!
  for _ in $(seq 1 100); do
    [[ -s "$folder/metrics.jsonl" ]] && break
    sleep 0.1
  done
  kill -"$signal" $job
  status=0
  wait $job || status=$?
  # mpirun that was told to terminate reports that itself.
  if [[ $signal == USR1 && $status != 75 ]]; then
    echo "SIGUSR1: exit code $status instead of 75"; cat "$folder.log"; exit 1
  fi
  ls -d "$folder"/checkpoints/step-* >/dev/null || { echo "SIG$signal left no checkpoint"; cat "$folder.log"; exit 1; }
  compgen -G "$folder/checkpoints/*.partial" >/dev/null && fail "SIG$signal left a partial checkpoint"
  echo "SIG$signal: checkpoint, exit code $status"
done

# A failing rank ends the job with its reason, within seconds.
start=$SECONDS
status=0
mpirun -n 2 "$degu" train "$work/run.yaml" --out "$work/bad" --set cluster.expert_parallel=2 \
  --set model.moe.experts=3 --set model.moe.top_k=1 2>"$work/bad.log" || status=$?
[[ $status != 0 ]] && ((SECONDS - start < 30)) && grep -q "expert" "$work/bad.log" ||
  { echo "bad layout: exit code $status after $((SECONDS - start)) s"; cat "$work/bad.log"; exit 1; }
echo "all passed"
