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
for pattern in sweep/runs.csv 'fit_*.json' planned.yaml plan.json 'plots/*.png' 'planned-*/result.json' comparison.json \
  serve/int8/manifest.json serve/table.txt plots/frontier.png plots/frontier.pdf; do
  compgen -G "$work/$pattern" >/dev/null || { echo "e2e: the quickstart left no $pattern"; exit 1; }
done
runs="$(($(wc -l <"$work/sweep/runs.csv") - 1))"
((runs >= 20)) || { echo "e2e: $runs runs in the sweep, at least 20 were promised"; exit 1; }
"$degu" info "$work/planned.yaml" >/dev/null
# Served with the bits of its training forward; every level profiled, with quality, speed and cost.
/usr/bin/python3 - "$work/serve" <<'PY'
import json
import math
import pathlib
import sys

serve = pathlib.Path(sys.argv[1])
parity, sample, profile = (json.loads((serve / name).read_text()) for name in ("parity.json", "sample.json", "profile.json"))
assert parity["mismatches"] == 0 and parity["comparisons"] > 1000, parity
assert sample["answers"][0]["usage"]["completion_tokens"] > 0, sample
levels = {level["level"]: level for level in profile["levels"]}
assert list(levels) == ["bf16", "int8", "int4", "int8+speculative"], list(levels)
for name, level in levels.items():
    assert [b["batch"] for b in level["batches"]] == [1, 4, 16], name
    assert 0 < level["quality"]["bits_per_byte"]["value"] < 16, name
    for b in level["batches"]:
        numbers = [b["decode_tokens_per_second"], b["prefill_tokens_per_second"], b["ttft_seconds"]["p95"],
                   b["itl_seconds"]["p99"], b["cost_per_million_output_tokens"], b["bandwidth"]["share"],
                   b["compute"]["prefill_share"]]
        assert all(math.isfinite(n) and n > 0 for n in numbers), (name, b)
weights = {name: level["memory_bytes"]["weights"] for name, level in levels.items()}
assert weights["int4"] < weights["int8"] < weights["bf16"], weights
assert levels["int8+speculative"]["quality"] == levels["int8"]["quality"]
assert len(profile["frontier"]) == 12 and not all(p["dominated"] for p in profile["frontier"])
assert set(profile["recommended"]) == {"quality", "latency", "cost"}
for name in ("frontier.png", "frontier.pdf"):
    assert (serve.parent / "plots" / name).stat().st_size > 10000, name
PY

before="$(cd "$work" && find . -type f -name '*.json' -exec sha256sum {} + | sort)"
"$repo/scripts/quickstart.sh" --scale "$scale" --out "$work" --degu "$degu" | tee "$work/again.txt"
grep -q 'all of it was done before' "$work/again.txt" || { echo "e2e: the second run did something"; exit 1; }
after="$(cd "$work" && find . -type f -name '*.json' -exec sha256sum {} + | sort)"
[[ "$before" == "$after" ]] || { echo "e2e: the second run changed results"; exit 1; }
echo "e2e: $runs runs, plan and training at scale $scale; the second run found all done"
