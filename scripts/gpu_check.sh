#!/usr/bin/env bash
# Builds what runs on a GPU, and where there is one runs it and writes one report.
#
#   scripts/gpu_check.sh                    bundle where a CUDA compiler is, then run where a GPU is
#   scripts/gpu_check.sh --bundle           build/gpu_check/bundle alone: programs with the libraries they need
#   scripts/gpu_check.sh --run [PART…]      run a bundle made before
#
# Parts, all of them when none is named:
#   tests      the tests that run on a GPU, side by side
#   sanitizer  compute-sanitizer's memcheck, racecheck and synccheck over the kernels' tests
#   kernels    degu bench kernels: every operator's share of the peak that bounds it
#   grouped layer train decode    the bars of scripts/bench/gpu_vs_torch.py, beside PyTorch and transformers
#
# A GPU node may be bare (no network, no MPI, HDF5 or Catch2), so the bundle holds every library but the C
# library's and the driver's, and its programs look for them beside themselves. Under 60 MiB when compressed.
# A node needs python3; without PyTorch or transformers in it the rows of those are left out.
# The report is build/gpu_check/report.md and report.json; they are also copied to $OUT where that is set.
# All parts together take 530 s at most ($DEGU_GPU_CHECK_SECONDS), each its share of them, so that a part which
# runs alone may take all. Exit 1 when a part failed or a bar was missed, 2 for a wrong call or without a bundle,
# 3 without a GPU to run on.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
folder=build/gpu_check
bundle=$folder/bundle
results=$folder/results
all_parts=(tests sanitizer kernels grouped layer train decode)
test_programs=(tests/kernels/kernels_test tests/tensor/tensor_test tests/train/device_run_test tests/infer/infer_test
               tests/infer/decode_graphs_test tests/infer/engine_device_test tests/bench/layer_bench_test)
scripts=(scripts/bench/gpu_vs_torch.py scripts/bench/gpu_model_parts.py scripts/bench/gpu_bars.py
         scripts/bench/gpu_peers.py scripts/bench/gpu_olmoe.py scripts/bench/gpu_report.py scripts/degu_command.py
         configs/gpu/1_gpu_olmoe.yaml)

say() { echo "gpu_check: $*" >&2; }

# Text with the vocabulary of the model that is trained: its tokenizer takes minutes, so it is kept between bundles.
make_shards() {
  local shards=$folder/text/shards
  [[ ! -f $shards/manifest.json ]] || return 0
  rm -rf "$shards"
  mkdir -p $folder/text
  say "preparing random text with 50,304 pieces (minutes, once)"
  PYTHONPATH=scripts python3 -c 'import pathlib, sys, degu_command
degu_command.prepare_random_text(pathlib.Path(sys.argv[1]), sys.argv[2], 50304, 8)' $folder/text $folder/build/src/cli/degu
}

make_bundle() {
  # NCCL is large and the bundle is for one GPU: ranks exchange by way of the host.
  cmake -S . -B $folder/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DDEGU_REQUIRE_ALL=ON -DDEGU_CUDA=ON -DDEGU_NCCL=OFF \
    -DCMAKE_BUILD_RPATH='$ORIGIN' -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags >$folder/configure.log 2>&1 ||
    { cat $folder/configure.log >&2; return 1; }
  cmake --build $folder/build -j "${DEGU_JOBS:-$(nproc)}" --target degu "${test_programs[@]##*/}" || return 1
  make_shards || return 1
  rm -rf $bundle
  mkdir -p $bundle
  local programs=(src/cli/degu "${test_programs[@]}") program library
  for program in "${programs[@]}"; do
    install -s -m 755 $folder/build/$program $bundle/ || return 1
  done
  for program in "${programs[@]}"; do ldd $folder/build/$program; done |
    awk '$3 ~ /^\// {print $3}' | sort -u |
    grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|libutil|ld-linux[^/]*|libcuda)\.so' |
    while read -r library; do install -m 644 "$(readlink -f "$library")" "$bundle/$(basename "$library")"; done
  cp "${scripts[@]}" $bundle/ || return 1
  cp -r $folder/text/shards $bundle/shards || return 1
  git rev-parse --short HEAD >$bundle/VERSION 2>/dev/null || true
  local bytes
  bytes=$(tar -C $folder -c bundle | xz -T0 -1 | wc -c)
  say "$bundle: $((bytes >> 20)) MiB compressed"
  if ((bytes > 60 << 20)); then
    say "larger than the 60 MiB that a bundle may take"
    return 1
  fi
}

# Seconds of all parts together that one of them may take, by what each is expected to need; no GPU has said yet.
share_of() {
  case $1 in
    tests) echo 65 ;;
    sanitizer) echo 35 ;;
    kernels) echo 45 ;;
    grouped) echo 30 ;;
    layer) echo 50 ;;
    train) echo 175 ;;
    decode) echo 130 ;;
  esac
}

# What `timeout` returns for a program that it ended: a part that found nothing wrong in the time it had, but did not
# come to its end, returns it too.
readonly CUT_SHORT=124

# The worst of several exit statuses: a failure, else a program that was cut short, else 0.
worst=0
count_status() {
  if (($1 != 0 && (worst == 0 || worst == CUT_SHORT))); then
    worst=$1
    (($1 != 137)) || worst=$CUT_SHORT
  fi
}

# Side by side: each waits more than it computes. cuDNN is no part of the bundle; PyTorch brings one.
run_tests() {  # SECONDS
  local cudnn
  cudnn=$(python3 -c 'import nvidia.cudnn; print(list(nvidia.cudnn.__path__)[0] + "/lib")' 2>/dev/null) &&
    local -x LD_LIBRARY_PATH="$cudnn${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  local program name filter pids=() names=() i code
  for program in "${test_programs[@]}"; do
    name=$(basename "$program")
    filter=()
    [[ $name == infer_test ]] && filter=('[device]')
    timeout -k 5 "$1" $bundle/"$name" ${filter[@]+"${filter[@]}"} >$results/"$name".log 2>&1 &
    pids+=($!)
    names+=("$name")
  done
  wait_for_all
}

# The sanitizer slows kernels by a factor of ten and more.
run_sanitizer() {  # SECONDS
  local tool pids=() names=() i code
  for tool in memcheck racecheck synccheck; do
    timeout -k 5 "$1" compute-sanitizer --tool $tool --error-exitcode 1 --print-limit 20 $bundle/kernels_test \
      '[rmsnorm],[router],[permute],[grouped_gemm],[attention]' >$results/$tool.log 2>&1 &
    pids+=($!)
    names+=("$tool")
  done
  wait_for_all
}

# Of the caller's `pids` and `names`: what each said, then its exit; the worst is returned.
wait_for_all() {
  worst=0
  for i in "${!pids[@]}"; do
    code=0
    wait "${pids[$i]}" || code=$?
    tail -n 40 "$results/${names[$i]}.log"
    echo "${names[$i]}: exit $code$( ((code != CUT_SHORT && code != 137)) || echo ', cut short')"
    count_status $code
  done
  return $worst
}

run_kernels() {  # SECONDS; as a table, whose rows come one by one, for there may be no time for all
  timeout -k 5 "$1" $bundle/degu bench kernels --device cuda --repetitions 3
}

run_bars() {  # SECONDS PART; ends by itself a little before it would be ended
  timeout -k 5 "$1" python3 $bundle/gpu_vs_torch.py "$2" --degu $bundle/degu --out $results/"$2".json \
    --seconds $(($1 > 12 ? $1 - 6 : $1 / 2))
}

run_part() {  # NAME SECONDS
  local name=$1 limit=$2 start=$SECONDS status=0
  say "$name, $limit s at most"
  case $name in
    tests | sanitizer | kernels) run_"$name" "$limit" ;;
    *) run_bars "$limit" "$name" ;;
  esac >$results/"$name".txt 2>&1 || status=$?
  printf '%s\t%d\t%d\t%d\n' "$name" $status $((SECONDS - start)) "$limit" >>$results/parts.tsv
}

run_parts() {  # PART…
  local name left=() sum=0
  for name in "$@"; do
    [[ " ${all_parts[*]} " == *" $name "* ]] || { say "unknown part $name; parts are ${all_parts[*]}"; return 2; }
    sum=$((sum + $(share_of "$name")))
  done
  if [[ ! -x $bundle/degu ]]; then
    say "no bundle here; make one with scripts/gpu_check.sh --bundle on a machine with a CUDA compiler"
    return 2
  fi
  command -v python3 >/dev/null || { say "python3 is needed"; return 2; }
  rm -rf $results $folder/report.md $folder/report.json
  mkdir -p $results
  if ! nvidia-smi -L >$results/gpus.txt 2>&1; then
    say "no GPU here; nothing was run"
    return 3
  fi
  : >$results/parts.tsv
  cat $bundle/VERSION >$results/version 2>/dev/null || echo unknown >$results/version
  for name in "$@"; do
    if [[ $name == sanitizer ]] && ! command -v compute-sanitizer >/dev/null; then
      left+=(--left-out "sanitizer (no compute-sanitizer)")
      continue
    fi
    run_part "$name" $((${DEGU_GPU_CHECK_SECONDS:-530} * $(share_of "$name") / sum))
  done
  local status=0
  python3 $bundle/gpu_report.py $results ${left[@]+"${left[@]}"} || status=$?
  if ! mv $results/report.md $results/report.json $folder/; then
    say "there is no report"
    return 1
  fi
  [[ -z "${OUT:-}" ]] || cp $folder/report.md $folder/report.json "$OUT"/
  cat $folder/report.md
  return $status
}

mkdir -p $folder
case "${1:-}" in
  --bundle) make_bundle ;;
  --run)
    shift
    (($# > 0)) || set -- "${all_parts[@]}"
    run_parts "$@" ;;
  "")
    if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then make_bundle || exit 1; fi
    run_parts "${all_parts[@]}" ;;
  *) echo "usage: scripts/gpu_check.sh [--bundle | --run [PART…]]" >&2; exit 2 ;;
esac
