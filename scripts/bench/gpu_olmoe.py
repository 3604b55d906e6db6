#!/usr/bin/env python3
"""transformers' OlmoeForCausalLM on a GPU, training and generating: the peer of gpu_vs_torch.py's train and decode.

  gpu_olmoe.py train|decode --model JSON [--device cuda|cpu] [--sequence S] [--batch B] …

Weights are random and bf16; gradients and AdamW's moments are bf16 too, the setting that holds least. Experts are
grouped_mm, attention is scaled_dot_product_attention. Each variant is one JSON object on a line, printed as soon as it
is known; before training comes the rate of a large dense product.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from gpu_peers import TINY, Budget, Size, dense, say, wait  # noqa: E402  (after the path is set)


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def peak_bytes(device: str) -> int | None:
    return torch.cuda.max_memory_reserved() if device == "cuda" else None


def forget(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def make_model(model: dict[str, Any], sequence: int, device: str) -> torch.nn.Module:
    """The `model:` part of degu's configuration as OLMoE. Its QK-norm spans all heads, degu's one head."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    moe = model["moe"]
    config = OlmoeConfig(
        vocab_size=model["vocab"], hidden_size=model["width"], num_hidden_layers=model["layers"],
        num_attention_heads=model["heads"], intermediate_size=moe["expert_width"], num_experts=moe["experts"],
        num_experts_per_tok=moe["top_k"], norm_topk_prob=moe.get("renormalize", True), tie_word_embeddings=False,
        max_position_embeddings=sequence, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa", experts_implementation="grouped_mm")
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return OlmoeForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


class Training:
    """AdamW steps over `batch` sequences in passes of `micro`; the loss is the cross-entropy alone."""

    def __init__(self, model: torch.nn.Module, args: argparse.Namespace) -> None:
        self.model, self.args = model, args
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        generator = torch.Generator(device=args.device).manual_seed(1)
        self.tokens_BS = torch.randint(model.config.vocab_size, (args.batch, args.sequence), device=args.device,
                                       generator=generator)

    def step(self, micro: int) -> None:
        passes = self.tokens_BS.split(micro)
        for tokens in passes:
            loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss / len(passes)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tokens_per_second(self, micro: int) -> float:
        """Median of the timed steps; two before them warm up."""
        times = []
        for _ in range(self.args.steps + 2):
            wait(self.args.device)
            start = time.perf_counter()
            self.step(micro)
            wait(self.args.device)
            times.append(time.perf_counter() - start)
        return self.tokens_BS.numel() / statistics.median(times[2:])


def try_training(training: Training, name: str, micro: int) -> bool:
    """Whether it fitted; with the row printed."""
    args = training.args
    forget(args.device)
    try:
        rate = training.tokens_per_second(micro)
    except torch.OutOfMemoryError:
        training.optimizer.zero_grad(set_to_none=True)
        return False
    say(name=name, micro=micro, tokens_per_second=rate, peak_bytes=peak_bytes(args.device),
        holds="bf16 weights, gradients and moments; everything kept for the backward pass")
    return True


def train(args: argparse.Namespace, _: Budget) -> None:
    dense(TINY if args.tiny else Size(), args.device)
    model = make_model(args.model, args.sequence, args.device).train()
    training = Training(model, args)
    fits = 0
    for micro in args.micro:
        if try_training(training, f"eager, {micro} sequences a pass", micro):
            fits = micro
            break
        say(left_out=f"transformers, {micro} sequences a pass: out of memory")
    if not fits:
        fits = args.micro[-1]
        model.gradient_checkpointing_enable()
        if not try_training(training, f"eager, checkpointed, {fits} sequences a pass", fits):
            say(left_out="transformers, checkpointed: out of memory")
            return
    try:
        for layer in model.model.layers:
            layer.compile()  # one layer's code serves all
        # What the compiler keeps may fit where eager did not, or the other way round.
        if not try_training(training, f"compiled by layer, {fits} sequences a pass", fits):
            say(left_out="transformers compiled: out of memory")
    except Exception as error:  # noqa: BLE001  (a compiler's errors are of any kind)
        say(left_out=f"transformers compiled: {first_line(error)}")


class StepTimes:
    """A logits processor that notes when each token of `generate` is there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wait(self.device)
        self.times.append(time.perf_counter())
        return scores

    def seconds(self) -> float:
        """Median over the last half of the steps: compilers and graphs have settled by then."""
        steps = [after - before for before, after in zip(self.times, self.times[1:])]
        return statistics.median(steps[len(steps) // 2:])


@contextlib.contextmanager
def keep_grouped(model: torch.nn.Module, keep: bool) -> Iterator[None]:
    """`generate` takes batched_mm, which copies the weights of every token's experts; with many streams grouped_mm may
    be better, so both are tried."""
    name = "_optimize_model_for_decode"
    if keep and hasattr(model, name):
        setattr(model, name, contextlib.nullcontext)
    try:
        yield
    finally:
        model.__dict__.pop(name, None)


def decode(args: argparse.Namespace, budget: Budget) -> None:
    from transformers import CompileConfig, LogitsProcessorList

    model = make_model(args.model, args.sequence, args.device).eval()
    generator = torch.Generator(device=args.device).manual_seed(1)
    prompt = torch.randint(model.config.vocab_size, (args.batch, args.prompt), device=args.device, generator=generator)
    variants = [("static cache, eager, grouped_mm", True, False), ("static cache, compiled, grouped_mm", True, True),
                ("static cache, compiled, as generate chooses", False, True)]
    for name, keep, compiled in variants:
        if not budget.lets(f"transformers, {name}"):
            continue
        times = StepTimes(args.device)
        options: dict[str, Any] = {"cache_implementation": "static", "disable_compile": not compiled}
        if compiled:
            options["compile_config"] = CompileConfig()
        forget(args.device)
        torch.compiler.reset()
        try:
            with torch.no_grad(), keep_grouped(model, keep), budget.variant():
                model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                               max_new_tokens=args.tokens, min_new_tokens=args.tokens,
                               logits_processor=LogitsProcessorList([times]), **options)
            say(name=name, streams=args.batch, tokens_per_second=args.batch / times.seconds(),
                peak_bytes=peak_bytes(args.device))
        except Exception as error:  # noqa: BLE001  (a compiler's errors are of any kind)
            say(left_out=f"transformers, {name}: {first_line(error)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parts = {"train": train, "decode": decode}
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("--model", type=json.loads, required=True, help="the model: part of degu's configuration")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sequence", type=int, default=4096, help="tokens of a sequence, prompt and answer")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step, or streams")
    parser.add_argument("--micro", type=int, nargs="+", default=[4, 2, 1], help="train: sequences of a pass to try")
    parser.add_argument("--steps", type=int, default=3, help="train: timed steps")
    parser.add_argument("--prompt", type=int, default=128, help="decode: tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="decode: new tokens")
    parser.add_argument("--seconds", type=float, default=600, help="that there are in all")
    parser.add_argument("--tiny", action="store_true", help="train: a small dense product")
    args = parser.parse_args()
    budget = Budget(args.seconds)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this PyTorch sees no GPU")
    torch.manual_seed(1)
    parts[args.part](args, budget)


if __name__ == "__main__":
    main()
