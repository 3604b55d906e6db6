#!/usr/bin/env python3
"""What degu reaches on a GPU beside PyTorch and transformers, and whether that is what it should be.

  gpu_vs_torch.py PART --degu PROGRAM [--seconds N] [--out FILE] [--json]

  grouped  grouped products of 64 experts of width 1024 and tokens of width 2048, 131,072 rows dealt at random: each of
           forward, dX and dW at 0.75 of the rate of a large dense product by cuBLASLt
  layer    a whole MoE layer of that size (router, dispatch, SwiGLU experts, combine) at 16k tokens: forward alone, and
           with backward, 1.2 times the best written by hand with grouped_mm, eager or compiled
  train    steps of configs/gpu/1_gpu_olmoe.yaml: 0.45 of the dense rate, 1.5 times transformers' best; memory within
           5 % of the plan
  decode   the same model in bf16 and INT4: one stream at 0.55 and 0.35 of the measured read bandwidth, 64 streams at
           twice transformers' generate; memory within 5 % of the plan

Every part is one report: bars, each with what degu reached, what stands beside it, their ratio and whether the bar is
met; what was left out and why; what failed. --out is written anew after each result, so that it holds what there was
when time ran out. PyTorch's rows come from processes of their own (gpu_peers.py, gpu_olmoe.py); without PyTorch, or
without what it needs, they are left out and their bars have no answer.
Exit 0 when the part came to its end, 1 when something of degu's failed, 124 when its time was up.
--tiny --device cpu tries the logic where there is no GPU; those numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import gpu_model_parts  # noqa: E402  (after the path is set)
from gpu_bars import (Bar, Clock, Part, Report, dense_rate, end_children_on_signal, run_degu,  # noqa: E402
                      run_peer, table)

DENSE = "dense bf16 product"
BY_HAND = "best by hand with grouped_mm"


def peer_options(args: argparse.Namespace) -> list[object]:
    return ["--device", args.device] + (["--tiny"] if args.tiny else [])


def grouped(args: argparse.Namespace, report: Report, clock: Clock) -> None:
    names = {"forward": "grouped_gemm", "dX": "grouped_gemm dX", "dW": "grouped_gemm_dw, 8 units"}
    report.expect(*(Bar(f"grouped {name}", "FLOP/s", 0.75, DENSE) for name in names))
    peers = run_peer(report, "gpu_peers.py", ["grouped", *peer_options(args)], clock.share(0.5))
    beside = dense_rate(report, peers)
    found = run_degu(report, "bench kernels",
                     [args.degu, "bench", "kernels", "--device", args.device, "--only", "grouped_gemm", "--json"],
                     clock.share())
    experts = "E=8 " if args.tiny else "E=64 "
    rates: dict[str, float] = {}
    for row in found["operators"] if found else []:
        for name, operator in names.items():
            if row["operator"] == operator and experts in row["size"]:
                rates[name] = max(rates.get(name, 0.0), row["rate"])
    for name in names:
        if name in rates:
            report.set(f"grouped {name}", degu=rates[name], beside=beside)
        elif found:
            report.fail(f"degu's benchmark has no row of grouped {name}")
    over_torch = {row["name"]: rates[row["name"]] / row["rate"] for row in peers if row["name"] in rates}
    report.detail(torch_grouped_mm={row["name"]: row["rate"] for row in peers if row["name"] in names},
                  degu_over_torch=over_torch)
    for name, ratio in over_torch.items():
        report.note(f"{name}: {ratio:.2f} times PyTorch's grouped_mm")


def layer(args: argparse.Namespace, report: Report, clock: Clock) -> None:
    cases = {"forward": "forward", "forward + backward": "both"}  # degu's name, the peer's
    report.expect(*(Bar(f"layer {name}", "tokens/s", 1.2, BY_HAND) for name in cases))
    size = ["--tokens", 256, "--width", 64, "--experts", 8, "--top-k", 2, "--expert-width", 32] if args.tiny else []
    found = run_degu(report, "bench layer", [args.degu, "bench", "layer", "--device", args.device, "--json", *size],
                     clock.share(0.4))
    for row in found["cases"] if found else []:
        report.set(f"layer {row['case']}", degu=row["tokens_per_second"])
        report.note(f"{row['case']}: {row['ratio']:.2f} of the peak in registers, {row['rate'] / 1e12:.1f} TFLOP/s")
    peers = run_peer(report, "gpu_peers.py", ["layer", *peer_options(args)], clock.share())
    report.detail(degu=found, peers=peers)
    for name, key in cases.items():
        if peers:
            best = max(peers, key=lambda row: row[key])
            report.set(f"layer {name}", beside=best[key], beside_what=f"{BY_HAND}: {best['name']}")


PARTS: dict[str, Part] = {"grouped": grouped, "layer": layer, "train": gpu_model_parts.train,
                          "decode": gpu_model_parts.decode}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--degu", required=True, help="the program, built with CUDA")
    parser.add_argument("--seconds", type=float, default=300, help="for the part in all (300)")
    parser.add_argument("--out", type=pathlib.Path, help="JSON, written anew after each result")
    parser.add_argument("--scratch", type=pathlib.Path,
                        help="folder for checkpoints and runs (default: /dev/shm when it has room, else the temporary "
                             "folder)")
    parser.add_argument("--shards", type=pathlib.Path,
                        help="train: text prepared with the model's vocabulary (default: shards/ beside this file, "
                             "else made on the spot, which takes minutes)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the logic")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args()
    end_children_on_signal()
    report, clock = Report(args.part, args.out), Clock(args.seconds)
    PARTS[args.part](args, report, clock)
    report.complete = not report.cut and clock.left() > 0
    report.save()
    print(json.dumps(report.to_json()) if args.json else table(report.to_json()))
    return 1 if report.failures else 0 if report.complete else 124


if __name__ == "__main__":
    sys.exit(main())
