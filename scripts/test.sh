#!/usr/bin/env bash
# Everything that must hold before a change lands; continuous integration runs it as .ci/run.
#
#   scripts/test.sh           all of it: release build; unit, property, MPI, end-to-end and install tests;
#                             address, undefined-behaviour and thread sanitizers; format, includes, lint;
#                             CUDA kernels emulated on the host, and compiled when a CUDA compiler is there
#   scripts/test.sh --quick   the daily loop: incremental release build, unit, MPI and source checks
#
# Every stage runs even when one before it failed; the last lines list them with their times. Exit 1 when
# any failed. DEGU_JOBS sets how many compile jobs run at once (default: the cores).
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$DEGU_ROOT"

quick=0
case "${1:-}" in
  "") ;;
  --quick) quick=1 ;;
  *) echo "usage: scripts/test.sh [--quick]" >&2; exit 2 ;;
esac
jobs="${DEGU_JOBS:-$(nproc)}"
release=build/release
summary=()
failed=0
begun=$SECONDS

# stage NAME COMMAND…: runs it, notes how it ended and how long it took.
stage() {
  local name="$1" start=$SECONDS verdict=passed
  shift
  echo "==== $name: $*"
  if ! "$@"; then
    verdict=FAILED
    failed=1
  fi
  summary+=("$(printf '%-28s %-7s %5d s' "$name" "$verdict" $((SECONDS - start)))")
  [[ $verdict == passed ]]
}

configure_and_build() {  # PRESET [TARGET…]
  local preset="$1"
  shift
  cmake --preset "$preset" >"build/configure-$preset.log" 2>&1 || { cat "build/configure-$preset.log"; return 1; }
  if (($# > 0)); then
    cmake --build --preset "$preset" -j "$jobs" --target "$@"
  else
    cmake --build --preset "$preset" -j "$jobs"
  fi
}

run_ctest() {  # FOLDER ARGUMENTS…: ctest's own closing lines end the output
  local folder="$1"
  shift
  local status=0
  ctest --test-dir "$folder" --output-on-failure --no-tests=error "$@" || status=$?
  # ctest keeps the output of tests that passed to itself; what they left out is told all the same.
  grep -hE '\bskipped: |: SKIPPED' "$folder/Testing/Temporary/LastTest.log" | sort | uniq -c | sed 's/^ */left out, times /' || true
  return $status
}

mkdir -p build
stage setup scripts/setup.sh || exit 1
if stage "release build" configure_and_build release; then
  stage "unit tests" run_ctest $release -LE 'mpi|e2e|install|static'
  stage "MPI tests" run_ctest $release -L mpi
  if ((quick)); then
    stage "source checks" run_ctest $release -L static -E headers_compile_alone
  else
    stage "source checks" run_ctest $release -L static
    stage "install" run_ctest $release -L install
    stage "end to end" run_ctest $release -L e2e
    stage "clang-tidy" scripts/run_tidy.py --build $release --jobs "$jobs" --budget-minutes "${DEGU_TIDY_MINUTES:-10}"
  fi
fi

if ((!quick)); then
  # Leaks of Open MPI and its helpers are not ours, so MPI tests stay with the release build.
  export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1}"
  if stage "asan+ubsan build" configure_and_build asan; then
    stage "asan+ubsan unit tests" run_ctest build/asan -j "$jobs" -LE 'mpi|e2e|install|static|slow'
  fi
  # The code that threads share: the pool, the communicator of threads as ranks, and what sockets answer beside a program.
  if stage "tsan build" configure_and_build tsan degu_tsan_tests; then
    stage "tsan tests" run_ctest build/tsan -L tsan
  fi
  if stage "emulated GPU build" configure_and_build emulated degu_emulated_tests; then
    stage "emulated GPU tests" run_ctest build/emulated -j "$jobs" -L emulated
  fi
  if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then
    stage "CUDA objects" configure_and_build cuda degu_cuda_objects
  else
    echo "==== CUDA objects: no CUDA compiler here, not built"
  fi
fi

echo
echo "==== summary (${jobs} jobs, $((SECONDS - begun)) s)"
printf '%s\n' "${summary[@]}"
if ((failed)); then
  echo "FAILED"
  exit 1
fi
echo "all passed"
