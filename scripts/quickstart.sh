#!/usr/bin/env bash
# From nothing to a planned and trained model: corpus, tokenizer, a sweep of dense and Mixture-of-Experts
# models with mpirun, scaling laws, plots, a plan, the planned model's training, how good the prediction was, and
# what serving it costs: as INT8 with the bits of its training forward, a sample, quality against cost.
#
#   scripts/quickstart.sh [--scale s] [--out DIR] [--corpus DIR] [--ranks n] [--price p] [--degu BINARY]
#
#   --scale s       multiplies all training budgets (default 1: about 12 minutes on two cores once
#                   packages and build are there)
#   --out DIR       default runs/quickstart, with --scale runs/quickstart-s
#   --corpus DIR    text to use instead of fetching some: whatever degu data prepare takes
#   --ranks n       MPI ranks, one thread each (default: the cores, as a power of two)
#   --price p       of this machine per hour, for the cost of serving (default 0.1, in any currency)
#   --degu BINARY   use this one; nothing is installed or built
#
# Run again, it goes on where it stopped, or says that all is done. Exit codes are degu's (docs/cli.md).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$DEGU_ROOT"

scale=1 out="" corpus="" ranks="" price=0.1 degu=""
while (($#)); do
  case "$1" in
    --scale) scale="${2:?--scale needs a number}"; shift 2 ;;
    --out) out="${2:?--out needs a folder}"; shift 2 ;;
    --corpus) corpus="${2:?--corpus needs a folder or file}"; shift 2 ;;
    --ranks) ranks="${2:?--ranks needs a number}"; shift 2 ;;
    --price) price="${2:?--price needs a number}"; shift 2 ;;
    --degu) degu="${2:?--degu needs a path}"; shift 2 ;;
    -h | --help) sed -n '2,17s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "quickstart: unknown option $1 (--help lists them)" >&2; exit 2 ;;
  esac
done
[[ "$scale" =~ ^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$ ]] || { echo "quickstart: --scale $scale is no positive number" >&2; exit 2; }
if [[ -z "$out" ]]; then
  if [[ "$scale" == 1 ]]; then out=runs/quickstart; else out="runs/quickstart-$scale"; fi
fi
if [[ -z "$ranks" ]]; then  # a power of two, so that every layout of ranks trains to the same bits
  ranks=1
  while ((ranks * 2 <= $(nproc) && ranks < 8)); do ranks=$((ranks * 2)); done
fi
python=/usr/bin/python3
[[ -x "$python" ]] || python=python3

begun=$SECONDS
step_number=0
steps=11
worked=0
heading() {
  step_number=$((step_number + 1))
  printf '\n[%d/%d, %d:%02d] %s\n' "$step_number" "$steps" $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60)) "$*"
}

# fresh TARGET SOURCE…: TARGET was made from these very SOURCEs. made TARGET SOURCE… notes that it now is.
fresh() {
  [[ -e "$1" && -f "$1.from" ]] && [[ "$(cat "$1.from")" == "$(sha256sum "${@:2}" | cut -d' ' -f1)" ]]
}
made() {
  sha256sum "${@:2}" | cut -d' ' -f1 >"$1.from"
  worked=1
}

heading "packages and build"
if [[ -z "$degu" ]]; then
  scripts/setup.sh
  degu=build/release/src/cli/degu
  mkdir -p build
  if [[ ! -f build/release/build.ninja ]]; then
    cmake --preset release >build/configure-release.log 2>&1 || { cat build/configure-release.log; exit 1; }
  fi
  cmake --build --preset release -j "$(nproc)" --target degu
fi
"$degu" --version

heading "text"
inputs=()
if [[ -n "$corpus" ]]; then
  inputs=("$corpus")
else
  scripts/fetch_corpus.sh corpus
  for folder in corpus/*/; do  # a domain each; beside them lie the packages' licences
    [[ "$(basename "$folder")" == licenses ]] || inputs+=(--domain "$(basename "$folder")=${folder%/}")
  done
fi
mkdir -p "$out"

heading "tokenizer and shards"
"$degu" data prepare "${inputs[@]}" --out "$out/data" --vocab 1024 --sample-bytes 4000000 --on-bad skip

heading "sweep: dense and MoE models on $ranks ranks"
# The experiment's file with this run's data and budgets.
"$python" - "$scale" "$out" experiments/quickstart/sweep.yaml "$out/sweep.yaml" <<'PY'
import sys
import yaml

scale, out, source, target = float(sys.argv[1]), *sys.argv[2:]
with open(source) as file:
    config = yaml.safe_load(file)


def scaled(budgets):
    return [float(f"{float(budget) * scale:.6g}") for budget in budgets]


config["sweep"]["budgets"] = scaled(config["sweep"]["budgets"])
for size in config["sweep"]["sizes"]:
    if "budgets" in size:
        size["budgets"] = scaled(size["budgets"])
config["data"]["paths"] = [f"{out}/data"]
with open(target, "w") as file:
    yaml.safe_dump(config, file, sort_keys=False)
PY
runs_before="$(sha256sum "$out/sweep/runs.csv" 2>/dev/null || true)"
mpirun -n "$ranks" "$degu" sweep "$out/sweep.yaml" --out "$out/sweep" --set cluster.threads=1
[[ "$runs_before" == "$(sha256sum "$out/sweep/runs.csv")" ]] || worked=1

heading "laws"
# fit NAME ARGUMENTS…: a fit that the data cannot carry is forced, and says so in its warnings.
fit() {
  local file="$out/fit_$1.json"
  if fresh "$file" "$out/sweep/runs.csv"; then
    echo "$file is there"
    return
  fi
  local status=0
  "$degu" fit "$out/sweep" "${@:2}" --out "$file" || status=$?
  if ((status == 5)); then
    echo "quickstart: refused as above; forced, so read its numbers as a sketch"
    "$degu" fit "$out/sweep" "${@:2}" --force --edge force --out "$file"
  elif ((status)); then
    exit $status
  fi
  made "$file" "$out/sweep/runs.csv"
}
fit minima --law chinchilla --approach 2 --bootstrap 1000
fit law --law chinchilla --approach 3 --bootstrap 500 --holdout largest
fit experts --law multipliers --approach 3 --bootstrap 500 --holdout largest

heading "plots"
fits=("$out/fit_minima.json" "$out/fit_law.json" "$out/fit_experts.json")
if fresh "$out/plots" "$out/sweep/runs.csv" "${fits[@]}" scripts/plot_scaling.py; then
  echo "$out/plots is there"
else
  "$python" scripts/plot_scaling.py "$out/sweep" --fit "${fits[@]}" --out "$out/plots"
  made "$out/plots" "$out/sweep/runs.csv" "${fits[@]}" scripts/plot_scaling.py
fi

heading "plan"
budget="$("$python" -c "print(f'{1.2e13 * $scale:.6g}')")"
plan() {
  "$degu" plan --fit "$1" --flops "$budget" --set train.evaluate_every=100 --set train.checkpoint_every=500 \
    --out "$out/planned.yaml" --json-out "$out/plan.json"
}
if fresh "$out/planned.yaml" "$out/fit_experts.json" "$out/fit_law.json"; then
  echo "$out/planned.yaml is there"
else
  if ! plan "$out/fit_experts.json"; then
    echo "quickstart: no plan from that law, as said above; the dense law plans instead"
    plan "$out/fit_law.json"
  fi
  made "$out/planned.yaml" "$out/fit_experts.json" "$out/fit_law.json"
fi

heading "training the planned model"
planned="$out/planned-$(sha256sum "$out/planned.yaml" | cut -c1-8)"
if [[ -f "$planned/result.json" ]]; then
  echo "$planned is complete"
else
  mpirun -n "$ranks" "$degu" train "$out/planned.yaml" --out "$planned" --resume --set cluster.threads=1
  worked=1
fi
if ! fresh "$out/plots/losses.png" "$planned/metrics.jsonl"; then
  "$python" scripts/plot_training.py "$planned" --out "$out/plots"
  made "$out/plots/losses.png" "$planned/metrics.jsonl"
fi

heading "serving: INT8, parity, a sample"
serve="$out/serve"
mkdir -p "$serve"
# served TARGET COMMAND…: the command's standard output is TARGET, made anew when the model is another.
served() {
  local target="$1"
  shift
  if fresh "$target" "$planned/result.json"; then
    echo "$target is there"
    return
  fi
  rm -f "$target" "$target.from"
  "$@" >"$target.partial"
  mv "$target.partial" "$target"
  made "$target" "$planned/result.json"
}
served "$serve/quantize.json" "$degu" quantize "$planned" --scheme w8a8 --out "$serve/int8" --json
served "$serve/parity.json" "$degu" parity "$serve/int8" --rounds 1 --json
served "$serve/sample.json" "$degu" generate "$serve/int8" --prompt "The " --max-tokens 60 --temperature 0.8 --seed 1 --json

heading "profile: quality, latency and cost of serving"
served "$serve/table.txt" "$degu" profile "$planned" --levels bf16,int8,int4,speculative --batch 1,4,16 \
  --data "$out/data" --price-per-hour "$price" --priority cost --out "$serve"
cat "$serve/table.txt"
if fresh "$out/plots/frontier.png" "$serve/profile.json" scripts/plot_frontier.py; then
  echo "$out/plots/frontier.png is there"
else
  "$python" scripts/plot_frontier.py "$serve/profile.json" --out "$out/plots"
  made "$out/plots/frontier.png" "$serve/profile.json" scripts/plot_frontier.py
fi

heading "what was learned"
"$degu" plan --compare "$out/plan.json" --measured "$planned" --json >"$out/comparison.json"
"$python" scripts/quickstart_summary.py "$out" "$planned"
if ((worked)); then
  printf 'done in %d:%02d\n' $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60))
else
  echo "all of it was done before; remove $out to start over"
fi
