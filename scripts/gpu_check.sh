#!/usr/bin/env bash
# Builds what runs on a GPU, and where there is one runs it and writes one report.
#
#   scripts/gpu_check.sh                    bundle where a CUDA compiler is, then run where a GPU is
#   scripts/gpu_check.sh --bundle           build/gpu_check/bundle alone: programs with the libraries they need
#   scripts/gpu_check.sh --run [PART…]      run a bundle made before; PARTs: tests sanitizer kernels decode torch
#
# A GPU node may be bare (no network, no MPI, HDF5 or Catch2), so the bundle holds every library but the C
# library's and the driver's, and its programs look for them beside themselves. Under 60 MiB when compressed.
# The report is build/gpu_check/report.md and report.json; they are also copied to $OUT where that is set.
# Meant to end within 9 minutes; every part also runs alone. Exit 1 when a test failed, 3 without a GPU to run on.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=build/gpu_check
bundle=$folder/bundle
test_programs=(tests/kernels/kernels_test tests/tensor/tensor_test tests/train/device_run_test tests/infer/infer_test)

say() { echo "gpu_check: $*" >&2; }

make_bundle() {
  # NCCL is large and the bundle is for one GPU: ranks exchange by way of the host.
  cmake -S . -B $folder/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DDEGU_REQUIRE_ALL=ON -DDEGU_CUDA=ON -DDEGU_NCCL=OFF \
    -DCMAKE_BUILD_RPATH='$ORIGIN' -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags >$folder/configure.log 2>&1 ||
    { cat $folder/configure.log >&2; return 1; }
  cmake --build $folder/build -j "${DEGU_JOBS:-$(nproc)}" --target degu kernels_test tensor_test device_run_test infer_test || return 1
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
  cp scripts/bench/gpu_vs_torch.py $bundle/
  git rev-parse --short HEAD >$bundle/VERSION 2>/dev/null || true
  local bytes
  bytes=$(tar -C $folder -c bundle | xz -T0 -1 | wc -c)
  say "$bundle: $((bytes >> 20)) MiB compressed"
  if ((bytes > 60 << 20)); then
    say "larger than the 60 MiB that a bundle may take"
    return 1
  fi
}

# One part's section of the report: a heading, what it printed, and its verdict for the JSON. A part that found
# nothing wrong in the time it had, but did not come to its end, returns CUT_SHORT.
readonly CUT_SHORT=124
sections=() verdicts=()
part() {  # NAME COMMAND…
  local name="$1" start=$SECONDS verdict=passed
  shift
  say "$name"
  "$@" >$folder/$name.txt 2>&1
  case $? in
    0) ;;
    $CUT_SHORT) verdict=incomplete ;;
    *) verdict=failed; failed=1 ;;
  esac
  sections+=("## $name: $verdict, $((SECONDS - start)) s" "" '```' "$(tail -n 200 $folder/$name.txt)" '```' "")
  verdicts+=("\"$name\": {\"verdict\": \"$verdict\", \"seconds\": $((SECONDS - start))}")
}

run_tests() {
  local program status=0
  for program in "${test_programs[@]}"; do
    local name filter=()
    name=$(basename "$program")
    [[ $name == infer_test ]] && filter=('[device]')
    echo "$name ${filter[*]}"
    timeout 100 $bundle/"$name" ${filter[@]+"${filter[@]}"} || status=1
  done
  return $status
}

# The sanitizer slows kernels by a factor of ten and more.
run_sanitizer() {
  local tool status=0 code cut=0
  for tool in memcheck racecheck synccheck; do
    code=0
    timeout 40 compute-sanitizer --tool $tool --error-exitcode 1 --print-limit 20 $bundle/kernels_test \
      '[rmsnorm],[router],[permute],[grouped_gemm],[attention]' || code=$?
    echo "compute-sanitizer --tool $tool: exit $code"
    if ((code == CUT_SHORT)); then cut=1; echo "cut short after 40 s"; elif ((code != 0)); then status=1; fi
  done
  if ((status == 0 && cut)); then status=$CUT_SHORT; fi
  return $status
}

run_kernels() {
  timeout 100 $bundle/degu bench kernels --device cuda --json >$folder/kernels.json &&
    cat $folder/kernels.json
}

# Serving speed of one model of random weights (1.3B parameters, 0.4B active) in three schemes.
run_decode() {
  local scheme status=0
  printf '%s\n' "model: {vocab: 32000, width: 1024, layers: 12, heads: 16, head_width: 64, ffn_width: 2048," \
    "  moe: {experts: 32, top_k: 8, expert_width: 1024, first_dense_layers: 0}}" "data: {sequence_length: 2048}" \
    >$folder/decode.yaml
  for scheme in bf16 w8a8 w4a16; do
    echo "$scheme"
    { timeout 40 $bundle/degu bench checkpoint $folder/decode.yaml --scheme $scheme --out $folder/decode-$scheme &&
      timeout 60 $bundle/degu bench decode $folder/decode-$scheme --device cuda; } || status=1
    rm -rf "${folder:?}/decode-$scheme"
  done
  return $status
}

run_torch() {
  timeout 100 python3 $bundle/gpu_vs_torch.py --degu $bundle/degu --json >$folder/torch.json && cat $folder/torch.json
}

has_torch() { python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; }

run_parts() {
  if [[ ! -x $bundle/degu ]]; then
    say "no bundle here; make one with scripts/gpu_check.sh --bundle on a machine with a CUDA compiler"
    return 2
  fi
  if ! nvidia-smi -L >$folder/gpus.txt 2>&1; then
    say "no GPU here; nothing was run"
    return 3
  fi
  failed=0
  local wanted="${*:-tests sanitizer kernels decode torch}" name left=""
  for name in $wanted; do
    case $name in
      tests) part tests run_tests ;;
      sanitizer)
        if command -v compute-sanitizer >/dev/null; then part sanitizer run_sanitizer; else left+=" sanitizer (no compute-sanitizer);"; fi ;;
      kernels) part kernels run_kernels ;;
      decode) part decode run_decode ;;
      torch)
        if has_torch; then part torch run_torch; else left+=" torch (no PyTorch that sees the GPU);"; fi ;;
      *) say "unknown part $name; parts are tests sanitizer kernels decode torch"; return 2 ;;
    esac
  done
  {
    echo "# GPU check"
    echo
    echo "$(date -u +%Y-%m-%d), version $(cat $bundle/VERSION 2>/dev/null || echo unknown), $(head -n 1 $folder/gpus.txt | sed 's/ (UUID.*//')"
    echo
    [[ -z $left ]] || printf 'Left out:%s\n\n' "$left"
    printf '%s\n' "${sections[@]}"
  } >$folder/report.md
  local joined
  joined=$(IFS=,; echo "${verdicts[*]}")
  printf '{"version": "%s", "date": "%s", "parts": {%s}, "left_out": "%s"}\n' \
    "$(cat $bundle/VERSION 2>/dev/null)" "$(date -u +%Y-%m-%d)" "$joined" "$left" >$folder/report.json
  if [[ -n "${OUT:-}" ]]; then
    cp $folder/report.md $folder/report.json "$OUT"/
    for name in kernels torch; do [[ ! -s $folder/$name.json ]] || cp $folder/$name.json "$OUT"/; done
  fi
  cat $folder/report.md
  return $failed
}

mkdir -p $folder
case "${1:-}" in
  --bundle) make_bundle ;;
  --run) shift; run_parts "$@" ;;
  "")
    if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then make_bundle || exit 1; fi
    run_parts ;;
  *) echo "usage: scripts/gpu_check.sh [--bundle | --run [PART…]]" >&2; exit 2 ;;
esac
