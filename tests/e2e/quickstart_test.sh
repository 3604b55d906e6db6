#!/usr/bin/env bash
# The quickstart at a small scale: every file it promises is there, its plan is a configuration, and a second
# run finds all done.
#   quickstart_test.sh DEGU SCRATCH_FOLDER
set -euo pipefail
degu="$1"
work="$2"
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
scale="${DEGU_E2E_SCALE:-0.02}"
rm -rf "$work"
mkdir -p "$work"

"$repo/scripts/quickstart.sh" --scale "$scale" --out "$work" --degu "$degu"
for pattern in sweep/runs.csv 'fit_*.json' planned.yaml plan.json 'plots/*.png' 'planned-*/result.json' comparison.json; do
  compgen -G "$work/$pattern" >/dev/null || { echo "e2e: the quickstart left no $pattern"; exit 1; }
done
runs="$(($(wc -l <"$work/sweep/runs.csv") - 1))"
((runs >= 20)) || { echo "e2e: $runs runs in the sweep, at least 20 were promised"; exit 1; }
"$degu" info "$work/planned.yaml" >/dev/null

before="$(cd "$work" && find . -type f -name '*.json' -exec sha256sum {} + | sort)"
"$repo/scripts/quickstart.sh" --scale "$scale" --out "$work" --degu "$degu" | tee "$work/again.txt"
grep -q 'all of it was done before' "$work/again.txt" || { echo "e2e: the second run did something"; exit 1; }
after="$(cd "$work" && find . -type f -name '*.json' -exec sha256sum {} + | sort)"
[[ "$before" == "$after" ]] || { echo "e2e: the second run changed results"; exit 1; }
echo "e2e: $runs runs, plan and training at scale $scale; the second run found all done"
