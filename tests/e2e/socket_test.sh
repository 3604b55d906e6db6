#!/usr/bin/env bash
# Ranks without MPI: the same bits as under mpirun and alone, a clean stop on a signal, and the way of the batch files
# where Slurm has no PMIx, with a stand-in for srun.
#   socket_test.sh DEGU FOLDER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare_words 1000
cat >"$work/run.yaml" <<YAML
model: {vocab: 512, width: 64, layers: 2, heads: 2, moe: {experts: 4, top_k: 2}}
data: {paths: [$work/data], sequence_length: 64, validation_tokens: 2048}
train: {batch_sequences: 16, steps: 20, log_every: 1}
cluster: {threads: 1}
YAML
mkdir "$work/meet" "$work/bin"

# Starts SLURM_NTASKS tasks here and hands them SIGUSR1; knows as many kinds of MPI as FAKE_MPI says.
cat >"$work/bin/srun" <<'SRUN'
#!/usr/bin/env bash
[[ "$1" == --mpi=list ]] && { echo "${FAKE_MPI:-none pmi2}"; exit; }
[[ "$1" == --mpi=none ]] || { echo "srun: not with $1" >&2; exit 9; }
while [[ "$1" == --* ]]; do shift; done
tasks=()
for ((task = 0; task < SLURM_NTASKS; ++task)); do
  SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_PROCID=$task "$@" &
  tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
status=0
for task in "${tasks[@]}"; do
  code=0
  wait "$task" || code=$?
  while kill -0 "$task" 2>/dev/null; do code=0; wait "$task" || code=$?; done
  ((code > status)) && status=$code
done
exit "$status"
SRUN
chmod +x "$work/bin/srun"

# ranks N COMMAND…: by hand, as on machines without a batch system. The exit code is the last rank's.
ranks() {
  local count="$1" rank pids=() status=0
  shift
  for ((rank = 0; rank < count; ++rank)); do
    DEGU_RENDEZVOUS="$work/meet" DEGU_RANKS=$count DEGU_RANK=$rank "$@" &
    pids+=($!)
  done
  for rank in "${pids[@]}"; do
    status=0
    wait "$rank" || status=$?
  done
  return "$status"
}

# losses FOLDER: every step's loss and norm and the validation, one line each
losses() {
  /usr/bin/python3 - "$1/metrics.jsonl" <<'PY'
import json
import sys

for line in map(json.loads, open(sys.argv[1])):
    print(line["step"], line.get("loss"), line.get("gradient_norm"), line.get("validation"))
PY
}

"$degu" train "$work/run.yaml" --out "$work/alone" 2>"$work/alone.log"
losses "$work/alone" >"$work/alone.txt"
[[ $(wc -l <"$work/alone.txt") == 21 ]] || fail "expected 20 steps and a validation"
for experts in 1 2; do
  mpirun -n 2 "$degu" train "$work/run.yaml" --out "$work/mpi$experts" --set cluster.expert_parallel=$experts \
    2>"$work/mpi$experts.log"
  ranks 2 "$degu" train "$work/run.yaml" --out "$work/sockets$experts" --set cluster.expert_parallel=$experts \
    2>"$work/sockets$experts.log" || fail "two ranks by sockets failed: $(tail -n 3 "$work/sockets$experts.log")"
  for way in mpi sockets; do
    losses "$work/$way$experts" | diff "$work/alone.txt" - || fail "$way with experts over $experts differs"
  done
  for part in "$work/mpi$experts"/checkpoints/*/*.h5; do
    cmp "$part" "${part/mpi$experts/sockets$experts}" || fail "other weights with experts over $experts"
  done
done
[[ -z $(ls "$work/meet") ]] || fail "the rendezvous left $(ls "$work/meet")"

# Where Slurm has no PMIx: plain srun is refused, and the batch files' way runs, stops and goes on.
export SLURM_JOB_ID=7 SLURM_NTASKS=2 SLURM_CPUS_PER_TASK=1 SLURM_SUBMIT_DIR="$DEGU_ROOT"
code=0
"$work/bin/srun" --mpi=none "$degu" train "$work/run.yaml" --out "$work/none" 2>"$work/error.txt" || code=$?
[[ $code == 2 ]] && grep -q "Slurm has started 2 tasks and nothing connects them" "$work/error.txt" ||
  fail "tasks on their own were not refused: $code, $(cat "$work/error.txt")"
[[ ! -e "$work/none" ]] || fail "tasks on their own wrote a run"
"$work/bin/srun" --mpi=none "$degu" info >/dev/null || fail "degu info failed in a task"

batch() {
  PATH="$work/bin:$PATH" DEGU="$degu" DEGU_LAUNCHER=sockets DEGU_RENDEZVOUS="$work/meet" bash -c '
    set -euo pipefail
    source scripts/slurm/common.sh
    run_ranks "$degu" train "$@"' batch "$@"
}
cd "$DEGU_ROOT"
batch "$work/run.yaml" --out "$work/stopped" --set train.steps=100000 2>"$work/stopped.log" &
job=$!
for _ in $(seq 1 200); do
  grep -qs '"step":5,' "$work/stopped/metrics.jsonl" && break
  sleep 0.1
done
kill -USR1 "$(pgrep -P $job | head -n 1)" 2>/dev/null || kill -USR1 $job
code=0
wait $job || code=$?
[[ $code == 75 ]] || fail "a batch job that was asked to stop returned $code: $(tail -n 3 "$work/stopped.log")"
steps=$(/usr/bin/python3 -c "
import json
print(max(json.loads(line)['step'] for line in open('$work/stopped/metrics.jsonl')) + 3)")
batch "$work/run.yaml" --out "$work/stopped" --resume --set train.steps="$steps" 2>>"$work/stopped.log" ||
  fail "the stopped run did not go on: $(tail -n 3 "$work/stopped.log")"
[[ -f "$work/stopped/result.json" ]] || fail "the stopped run is not complete"

# Without mpirun there is nothing to ask for; with PMIx srun is called for it.
code=0
PATH="$work/bin:$PATH" FAKE_MPI="none pmix_v4" DEGU="$degu" bash -c '
  source scripts/slurm/common.sh
  run_ranks true' 2>"$work/error.txt" || code=$?
[[ $code == 9 ]] && grep -q "not with --mpi=pmix" "$work/error.txt" || fail "PMIx was not used where it is: $code"
echo "sockets: all well"
