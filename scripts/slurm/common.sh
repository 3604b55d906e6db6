# Sourced by the batch files: the binary, a launcher for the ranks, and what to do when time ran out.
cd "${SLURM_SUBMIT_DIR:-.}"
source scripts/env.sh
degu="${DEGU:-build/release/src/cli/degu}"
[[ -x "$degu" ]] || { echo "no $degu: build it first, or set DEGU" >&2; exit 2; }

# srun where Slurm can start Open MPI's ranks (PMIx), else mpirun inside the allocation, whose transports are quicker
# than TCP, and without mpirun srun again: its tasks find each other in DEGU_RENDEZVOUS, by default the folder that the
# job was submitted from. DEGU_LAUNCHER=srun|mpirun|sockets asks for one of the three. The batch files have Slurm send
# SIGUSR1 to this shell alone (--signal=B:USR1), which hands it to the launcher, which hands it to the ranks.
run_ranks() {
  local threads="${SLURM_CPUS_PER_TASK:-1}" way="${DEGU_LAUNCHER:-}"
  if [[ -z "$way" ]]; then
    way=sockets
    if [[ "$(srun --mpi=list 2>&1)" == *pmix* ]]; then
      way=srun
    elif command -v mpirun >/dev/null; then
      way=mpirun
    fi
  fi
  local launcher=()
  case "$way" in
    srun) launcher=(srun --mpi=pmix --cpus-per-task="$threads") ;;
    mpirun) launcher=(mpirun --map-by "slot:PE=$threads") ;;
    sockets)
      launcher=(srun --mpi=none --cpus-per-task="$threads")
      local -x DEGU_RENDEZVOUS="${DEGU_RENDEZVOUS:-$PWD}"
      ;;
    *)
      echo "DEGU_LAUNCHER=$way: must be srun, mpirun or sockets" >&2
      return 2
      ;;
  esac
  "${launcher[@]}" "$@" --set cluster.threads="$threads" &
  local ranks=$! status=0
  trap 'kill -USR1 "$ranks"' USR1
  wait "$ranks" || status=$?
  while kill -0 "$ranks" 2>/dev/null; do  # a trapped signal ends a wait early
    status=0
    wait "$ranks" || status=$?
  done
  trap - USR1
  return "$status"
}

# Exit code 75: degu was asked to stop, and left a checkpoint.
requeue_if_interrupted() {
  if (($1 == 75)) && [[ -n "${SLURM_JOB_ID:-}" ]]; then
    echo "interrupted with a checkpoint: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  exit "$1"
}
