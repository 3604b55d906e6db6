#!/usr/bin/env python3
"""What sparsity, ranks and reproducible sums cost degu's own training, in alternation within one run.

  scripts/bench/train_speed.py [--rounds 5] [--json]

Every side takes the same steps on the same tokens (bf16, AdamW, clipping, balancing loss):
  moe              width 256, 4 blocks, 8 experts of width 512, top-2; 1 rank x 2 threads
  dense            the dense model of equal active parameters; 1 rank x 2 threads
  moe 2 ranks      2 ranks x 1 thread, the experts spread over both
  moe fastest      train.reproducible off; likewise "moe 2 ranks fastest"
  wide, wide moe   width 512, 8 heads, 4 blocks, feed-forward 2,048 or 8 experts of width 1,024, top-2:
                   its share of the bf16 peak measured at each start
Prints medians over the rounds; with --json one object: ratio is 2 ranks x 1 thread over 1 rank x 2 threads,
moe_over_dense, reproducible_cost (1 - reproducible over fastest, per layout) and utilisation of the wide models.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "scripts")]

from degu_command import find_degu, prepare_random_text, training_speed  # noqa: E402  (after the path is set)

VOCAB, SEQUENCE, BATCH = 8192, 256, 16


def model(width: int, moe: bool) -> dict[str, Any]:
    shape: dict[str, Any] = {"vocab": VOCAB, "width": width, "layers": 4, "heads": width // 64,
                             "ffn_width": 4 * width, "tied_head": False}
    if moe:
        shape["moe"] = {"experts": 8, "top_k": 2, "expert_width": 2 * width}
    return shape


# name: model, ranks, reproducible
SIDES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "moe": (model(256, True), 1, True),
    "dense": (model(256, False), 1, True),
    "moe 2 ranks": (model(256, True), 2, True),
    "moe fastest": (model(256, True), 1, False),
    "moe 2 ranks fastest": (model(256, True), 2, False),
    "wide": (model(512, False), 1, True),
    "wide moe": (model(512, True), 1, True),
}


def config(shape: dict[str, Any], ranks: int, reproducible: bool, shards: pathlib.Path, steps: int) -> str:
    return yaml.safe_dump({
        "model": shape,
        "data": {"paths": [str(shards)], "sequence_length": SEQUENCE, "confine_documents": False,
                 "validation_tokens": SEQUENCE},
        "train": {"precision": "bf16", "batch_sequences": BATCH, "steps": steps + 1, "log_every": 1,
                  "reproducible": reproducible, "balance": {"aux_loss": 0.01},
                  "optimizer": {"learning_rate": 1e-3, "clip": 1.0, "schedule": {"kind": "constant"}}},
        "cluster": {"threads": 2 // ranks, "expert_parallel": ranks},
    })


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--degu", help="the binary (default: the checkout's release build)")
    parser.add_argument("--rounds", type=int, default=5, help="each side takes its steps this many times")
    parser.add_argument("--steps", type=int, default=6, help="timed steps per side and round")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args()
    degu = find_degu(args.degu)

    rates: dict[str, list[float]] = {name: [] for name in args.sides}
    shares: dict[str, list[float]] = {name: [] for name in args.sides}
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = pathlib.Path(scratch_name)
        shards = prepare_random_text(scratch, degu, VOCAB, megabytes=4)
        for number in range(args.rounds):
            for name in args.sides:
                shape, ranks, reproducible = SIDES[name]
                stem = f"{name.replace(' ', '-')}-{number}"
                path = scratch / f"{stem}.yaml"
                path.write_text(config(shape, ranks, reproducible, shards, args.steps))
                speed = training_speed(degu, path, scratch / stem, ranks)
                rates[name].append(speed.tokens_per_second)
                shares[name].append(speed.utilisation)
                print(f"round {number + 1}/{args.rounds}  {name:<22}{rates[name][-1]:>9.0f} tokens/s  "
                      f"{shares[name][-1]:.2f} of peak", file=sys.stderr, flush=True)

    def ratio(numerator: str, denominator: str) -> float | None:
        """Median over the rounds of the ratio within a round."""
        if numerator not in rates or denominator not in rates:
            return None
        return statistics.median(a / b for a, b in zip(rates[numerator], rates[denominator], strict=True))

    def cost(reproducible: str, fastest: str) -> float | None:
        kept = ratio(reproducible, fastest)
        return None if kept is None else 1 - kept

    result = {
        "ratio": ratio("moe 2 ranks", "moe"), "moe_over_dense": ratio("moe", "dense"),
        "reproducible_cost": {"1 rank": cost("moe", "moe fastest"),
                              "2 ranks": cost("moe 2 ranks", "moe 2 ranks fastest")},
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "utilisation": {name: statistics.median(values) for name, values in shares.items()},
        "all_rounds": rates,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"\n{'':<22}{'tokens/s':>10}{'slowest':>10}{'fastest':>10}{'of peak':>10}")
    for name, values in rates.items():
        print(f"{name:<22}{statistics.median(values):>10.0f}{min(values):>10.0f}{max(values):>10.0f}"
              f"{result['utilisation'][name]:>10.2f}")
    for label, value in (("2 ranks x 1 thread over 1 rank x 2 threads", result["ratio"]),
                         ("MoE over dense at equal active parameters", result["moe_over_dense"]),
                         ("what reproducible costs on 1 rank", result["reproducible_cost"]["1 rank"]),
                         ("what reproducible costs on 2 ranks", result["reproducible_cost"]["2 ranks"])):
        if value is not None:
            print(f"{label:<46}{value:>6.2f}")


if __name__ == "__main__":
    main()
