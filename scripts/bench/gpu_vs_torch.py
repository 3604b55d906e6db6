#!/usr/bin/env python3
"""Grouped products of an MoE layer on a GPU: degu's, PyTorch's grouped_mm, and the dense rate that bounds both.

  gpu_vs_torch.py --degu PROGRAM [--json]

64 experts of width 1024, tokens of width 2048, 131,072 rows dealt to experts at random (16k tokens that visit 8
each), bf16: forward, dX and dW; PyTorch first, then degu. The dense rate is that of one large bf16 product by
cuBLAS, measured before and after. Bar: each of degu's at 0.75 of the dense rate. Needs PyTorch with CUDA; without
grouped_mm in it, its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch

EXPERTS, ROWS, INNER, OUTER = 64, 131072, 2048, 1024
WORK = 2.0 * ROWS * INNER * OUTER
BAR = 0.75
DEGU_NAMES = {"forward": "grouped_gemm", "dX": "grouped_gemm dX", "dW": "grouped_gemm_dw, 8 units"}


def seconds(call: Callable[[], object], calls: int = 20) -> float:
    """Of one call, the median of five timings by events."""
    call()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times)


def dense_rate() -> float:
    """FLOP/s of a product large enough to fill the device."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * n**3 / seconds(lambda: a @ b, calls=10)


def torch_rates() -> dict[str, float]:
    grouped = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if grouped is None:
        print("gpu_vs_torch: this PyTorch has no grouped_mm; its rows are left out", file=sys.stderr)
        return {}
    generator = torch.Generator(device="cuda").manual_seed(1)
    experts = torch.randint(EXPERTS, (ROWS,), device="cuda", generator=generator)
    offsets = torch.bincount(experts, minlength=EXPERTS).cumsum(0).to(torch.int32)
    x = torch.randn(ROWS, INNER, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(ROWS, OUTER, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(EXPERTS, INNER, OUTER, device="cuda", dtype=torch.bfloat16) * 0.05
    calls = {"forward": lambda: grouped(x, w, offs=offsets),
             "dX": lambda: grouped(dy, w.transpose(1, 2), offs=offsets),
             "dW": lambda: grouped(x.t(), dy, offs=offsets)}
    return {name: WORK / seconds(call) for name, call in calls.items()}


def degu_rates(program: str) -> dict[str, float]:
    done = subprocess.run([program, "bench", "kernels", "--device", "cuda", "--only", "grouped_gemm", "--json"],
                          check=True, capture_output=True, text=True)
    rates: dict[str, float] = {}
    for row in json.loads(done.stdout)["operators"]:
        for name, operator in DEGU_NAMES.items():
            if row["operator"] == operator and f"E={EXPERTS}" in row["size"]:
                rates[name] = max(rates.get(name, 0.0), row["rate"])
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--degu", required=True, help="the program, built with CUDA")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args()
    before = dense_rate()
    peer = torch_rates()
    own = degu_rates(args.degu)
    dense = 0.5 * (before + dense_rate())
    ratios = {name: own[name] / peer[name] for name in own if name in peer}
    shares = {name: rate / dense for name, rate in own.items()}
    if args.json:
        print(json.dumps({"ratio": min(ratios.values(), default=None), "ratios": ratios, "share_of_dense": shares,
                          "bar": BAR, "dense_flops": dense, "degu_flops": own, "torch_flops": peer,
                          "torch": torch.__version__, "device": torch.cuda.get_device_name()}))
        return
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, dense {dense / 1e12:.0f} TFLOP/s")
    for name in own:
        beside = f"{peer[name] / 1e12:7.0f} {ratios[name]:6.2f}" if name in peer else "      -      -"
        print(f"{name:8} {own[name] / 1e12:7.0f} TFLOP/s, {shares[name]:.2f} of dense (bar {BAR}); torch {beside}")


if __name__ == "__main__":
    main()
