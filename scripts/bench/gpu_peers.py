#!/usr/bin/env python3
"""PyTorch's side of gpu_vs_torch.py: a large dense product, grouped products, and an MoE layer by hand.

  gpu_peers.py dense|grouped|layer [--device cuda|cpu] [--tiny] [--seconds N]

Prints one JSON object a line, as soon as it is known; of variants for which there is no time, that they are left out.
Letters: T tokens, D width, E experts, K experts per token, R = T K rows in the order of their experts, F width of an
expert.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Size:
    tokens: int = 16384
    width: int = 2048
    experts: int = 64
    top_k: int = 8
    expert_width: int = 1024
    dense: int = 8192


TINY = Size(tokens=256, width=64, experts=8, top_k=2, expert_width=32, dense=256)


def say(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str, least: float = 0.1) -> float:
    """Of one call: the median of five timings of as many calls as take `least` seconds."""
    def timed(calls: int) -> float:
        wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        return (time.perf_counter() - start) / calls

    for _ in range(3):  # compiles, chooses kernels, fills the allocator's pools
        call()
    calls = max(2, min(200, int(least / max(timed(2), 1e-6))))
    return statistics.median(timed(calls) for _ in range(5))


def grouped_mm() -> Callable[..., Tensor] | None:
    return getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def dense(size: Size, device: str, _: Budget | None = None) -> None:
    """FLOP/s of a product large enough to fill the device: by cuBLASLt on a GPU."""
    n = size.dense
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    say(name="dense", rate=2.0 * n**3 / seconds(lambda: a @ b, device), torch=torch.__version__, device=name)


def grouped(size: Size, device: str, _: Budget) -> None:
    """The dense rate before and after, grouped products between."""
    dense(size, device)
    product = grouped_mm()
    if product is None:
        say(left_out="this PyTorch has no grouped_mm")
        return
    rows = size.tokens * size.top_k
    generator = torch.Generator(device=device).manual_seed(1)
    experts_R = torch.randint(size.experts, (rows,), device=device, generator=generator)
    ends_E = torch.bincount(experts_R, minlength=size.experts).cumsum(0).to(torch.int32)
    x_RD = torch.randn(rows, size.width, device=device, dtype=torch.bfloat16)
    dy_RF = torch.randn(rows, size.expert_width, device=device, dtype=torch.bfloat16)
    w_EDF = 0.05 * torch.randn(size.experts, size.width, size.expert_width, device=device, dtype=torch.bfloat16)
    calls = {"forward": lambda: product(x_RD, w_EDF, offs=ends_E),
             "dX": lambda: product(dy_RF, w_EDF.transpose(1, 2), offs=ends_E),
             "dW": lambda: product(x_RD.t(), dy_RF, offs=ends_E)}
    work = 2.0 * rows * size.width * size.expert_width
    for name, call in calls.items():
        try:
            say(name=name, rate=work / seconds(call, device))
        except RuntimeError as error:
            say(left_out=f"grouped_mm, {name}: {str(error).splitlines()[0]}")
    dense(size, device)


class Permute(torch.autograd.Function):
    """Rows of x in the order of their experts; the gradient comes back by the inverse, without atomics."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_R: Tensor, back_R: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(back_R)
        ctx.top_k = top_k
        return x_TD[order_R // top_k]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (back_R,) = ctx.saved_tensors
        dx_RD = gradients[0][back_R]
        return dx_RD.view(-1, ctx.top_k, dx_RD.shape[-1]).sum(1), None, None, None


class Unpermute(torch.autograd.Function):
    """Rows back in the order of their tokens."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, order_R: Tensor, back_R: Tensor) -> Tensor:
        ctx.save_for_backward(order_R)
        return y_RD[back_R]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (order_R,) = ctx.saved_tensors
        return gradients[0][order_R], None, None


class HandMoe(nn.Module):
    """Router, dispatch, SwiGLU experts, combine: gate and up as one product, tokens sorted once, grouped_mm.

    `by_inverse`: permutations with gradients of their own; else autograd's of index_select.
    """

    def __init__(self, size: Size, by_inverse: bool) -> None:
        super().__init__()
        self.size, self.by_inverse = size, by_inverse
        e, d, f = size.experts, size.width, size.expert_width
        self.router = nn.Parameter(0.02 * torch.randn(e, d))
        self.gate_up = nn.Parameter(0.02 * torch.randn(e, 2 * f, d))
        self.down = nn.Parameter(0.02 * torch.randn(e, d, f))

    def forward(self, x_TD: Tensor) -> Tensor:
        product = grouped_mm()
        assert product is not None
        top_k = self.size.top_k
        scores_TE = F.linear(x_TD, self.router).float().softmax(-1)
        gates_TK, experts_TK = scores_TE.topk(top_k, dim=-1)
        gates_TK = (gates_TK / gates_TK.sum(-1, keepdim=True)).to(x_TD.dtype)
        sorted_R, order_R = experts_TK.flatten().sort(stable=True)
        back_R = torch.empty_like(order_R)
        back_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
        bounds_E = torch.arange(self.size.experts, device=sorted_R.device)
        ends_E = torch.searchsorted(sorted_R, bounds_E, right=True).to(torch.int32)
        if self.by_inverse:
            x_RD = Permute.apply(x_TD, order_R, back_R, top_k)
        else:
            x_RD = x_TD.index_select(0, order_R // top_k)
        gate_RF, up_RF = product(x_RD, self.gate_up.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
        y_RD = product(F.silu(gate_RF) * up_RF, self.down.transpose(1, 2), offs=ends_E)
        y_RD = Unpermute.apply(y_RD, order_R, back_R) if self.by_inverse else y_RD.index_select(0, back_R)
        return (y_RD.view(-1, top_k, y_RD.shape[-1]) * gates_TK.unsqueeze(-1)).sum(1)


class Budget:
    """The seconds that a process has, by which later variants are left out."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.longest = 0.0

    @contextlib.contextmanager
    def variant(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.longest = max(self.longest, time.monotonic() - start)

    def lets(self, name: str) -> bool:
        """Whether there is time for another that takes as long as the longest so far; says so when not."""
        if self.end - time.monotonic() > 1.2 * self.longest:
            return True
        say(left_out=f"{name}: no time was left for it")
        return False


def layer(size: Size, device: str, budget: Budget) -> None:
    if grouped_mm() is None:
        say(left_out="this PyTorch has no grouped_mm")
        return
    x_TD = torch.randn(size.tokens, size.width, device=device, dtype=torch.bfloat16, requires_grad=True)
    dy_TD = torch.randn_like(x_TD)
    for compiled in (False, True):
        for by_inverse in (True, False):
            name = ("compiled" if compiled else "eager") + (", by inverse" if by_inverse else ", index_select")
            if not budget.lets(f"layer {name}"):
                continue
            module = HandMoe(size, by_inverse).to(device, torch.bfloat16)
            step = torch.compile(module) if compiled else module

            def both(module: nn.Module = module, step: Callable[[Tensor], Tensor] = step) -> None:
                module.zero_grad(set_to_none=True)
                x_TD.grad = None
                step(x_TD).backward(dy_TD)

            try:
                with budget.variant():
                    total = seconds(both, device)
                    forward = seconds(lambda step=step: step(x_TD), device)  # type: ignore[misc]
                say(name=name, forward=size.tokens / forward, both=size.tokens / total)
            except Exception as error:  # noqa: BLE001  (a compiler's errors are of any kind)
                say(left_out=f"layer {name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parts = {"dense": dense, "grouped": grouped, "layer": layer}
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the logic")
    parser.add_argument("--seconds", type=float, default=600, help="that there are in all")
    args = parser.parse_args()
    budget = Budget(args.seconds)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this PyTorch sees no GPU")
    torch.manual_seed(1)
    parts[args.part](TINY if args.tiny else Size(), args.device, budget)


if __name__ == "__main__":
    main()
