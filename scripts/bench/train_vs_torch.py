#!/usr/bin/env python3
"""Training speed of one model in degu and in PyTorch, in alternation within one run.

  $(scripts/torch_venv.sh | tail -n 1) scripts/bench/train_vs_torch.py [--json]

The model: width 256, 4 blocks, 4 heads, 8 experts of width 512 of which a token visits 2, vocabulary 8,192,
sequences of 256, 16 of them a step; bf16 with fp32 masters, AdamW, clipping at 1, balancing loss 0.01.
Every side takes the same steps on the same tokens:
  degu                       degu train, one process, --threads threads
  transformers eager         MixtralForCausalLM under bf16 autocast, fused AdamW
  transformers grouped_mm    the same with its grouped matrix products
  by hand sorted             scripts/bench/torch_models.py, tokens sorted, one linear per expert
  by hand grouped_mm         the same with F.grouped_mm
  by hand compiled           the same under torch.compile (compiled before anything is timed)
  dense, dense compiled      the dense model of equal active FLOPs by hand
and degu's own dense twin, for the tax of being sparse. Prints medians over the rounds; with --json one object:
ratio is degu over the best of transformers, ratio_by_hand over the best written by hand.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import torch
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]

from degu_command import find_degu, prepare_random_text, training_speed  # noqa: E402  (after the path is set)
from torch_models import Balance, MoeShape, Shape, Transformer, mixtral  # noqa: E402

MOE = Shape(vocab=8192, width=256, layers=4, heads=4, ffn_width=1024, tied_head=False,
            moe=MoeShape(experts=8, top_k=2, expert_width=512)).resolved()
DENSE = Shape(vocab=8192, width=256, layers=4, heads=4, ffn_width=1024, tied_head=False).resolved()
SEQUENCE, BATCH = 256, 16
BALANCE = Balance(aux_loss=0.01)
LEARNING_RATE, CLIP = 1e-3, 1.0


def read_tokens(shards: pathlib.Path, count: int) -> torch.Tensor:
    """[count, S + 1] tokens from the start of the training shards, as degu prepared them."""
    pieces, have = [], 0
    manifest = json.loads((shards / "manifest.json").read_text())
    for domain in manifest["domains"]:
        for shard in domain["train"]["shards"]:
            with h5py.File(shards / shard["file"], "r") as file:
                pieces.append(np.asarray(file["tokens"][()], dtype=np.int64))
            have += len(pieces[-1])
    needed = count * (SEQUENCE + 1)
    if have < needed:
        raise SystemExit(f"{shards}: {have} training tokens, {needed} are needed")
    return torch.from_numpy(np.concatenate(pieces)[:needed].reshape(count, SEQUENCE + 1))


class TorchSide:
    """One PyTorch variant with its optimizer, ready to take steps."""

    def __init__(self, name: str, model: torch.nn.Module, precision: str,
                 loss: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor], compiled: bool) -> None:
        self.name, self.model, self.precision = name, model, precision
        self.loss = torch.compile(loss) if compiled else loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95),
                                           weight_decay=0.1, fused=True)

    def step(self, tokens_BS1: torch.Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(self.model, tokens_BS1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item()

    def tokens_per_second(self, batches: list[torch.Tensor]) -> float:
        """Median over the batches but the first, which warms up."""
        seconds = []
        for batch in batches:
            start = time.perf_counter()
            self.step(batch)
            seconds.append(time.perf_counter() - start)
        return BATCH * SEQUENCE / statistics.median(seconds[1:])


def loss_by_hand(model: torch.nn.Module, tokens_BS1: torch.Tensor) -> torch.Tensor:
    loss, extra = model(tokens_BS1, BALANCE)
    return loss + extra


def loss_transformers(model: torch.nn.Module, tokens_BS1: torch.Tensor) -> torch.Tensor:
    # the model shifts labels itself and adds the balancing loss
    inputs = tokens_BS1[:, :-1]
    return model(input_ids=inputs, labels=inputs).loss


def torch_sides(precision: str, wanted: list[str]) -> list[TorchSide]:
    def by_hand(shape: Shape, kind: str) -> Transformer:
        return Transformer(shape, kind, SEQUENCE).initialise(1)

    makers: dict[str, tuple[Callable[[], torch.nn.Module], Any, bool]] = {
        "transformers eager": (lambda: mixtral(MOE, "eager", SEQUENCE, BALANCE.aux_loss),
                               loss_transformers, False),
        "transformers grouped_mm": (lambda: mixtral(MOE, "grouped_mm", SEQUENCE, BALANCE.aux_loss),
                                    loss_transformers, False),
        "by hand sorted": (lambda: by_hand(MOE, "sorted"), loss_by_hand, False),
        "by hand grouped_mm": (lambda: by_hand(MOE, "grouped_mm"), loss_by_hand, False),
        "by hand compiled": (lambda: by_hand(MOE, "grouped_mm"), loss_by_hand, True),
        "dense": (lambda: by_hand(DENSE, "plain"), loss_by_hand, False),
        "dense compiled": (lambda: by_hand(DENSE, "plain"), loss_by_hand, True),
    }
    sides = []
    for name, (make, loss, compiled) in makers.items():
        if any(name.startswith(w) for w in wanted):
            sides.append(TorchSide(name, make(), precision, loss, compiled))
    return sides


class DeguSide:
    """degu train on the same shards; the time of a step is what its metrics say."""

    def __init__(self, name: str, shape: Shape, degu: str, shards: pathlib.Path, scratch: pathlib.Path,
                 args: argparse.Namespace) -> None:
        self.name, self.degu, self.scratch, self.runs = name, degu, scratch, 0
        config = {
            "model": shape.to_config(),
            "data": {"paths": [str(shards)], "sequence_length": SEQUENCE, "confine_documents": False,
                     "validation_tokens": SEQUENCE},
            "train": {"precision": args.precision, "batch_sequences": BATCH, "steps": args.steps + 1,
                      "log_every": 1, "reproducible": not args.fastest,
                      "balance": {"aux_loss": BALANCE.aux_loss},
                      "optimizer": {"learning_rate": LEARNING_RATE, "clip": CLIP,
                                    "schedule": {"kind": "constant"}}},
            "cluster": {"threads": args.threads},
        }
        self.config = scratch / f"{name.replace(' ', '-')}.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def tokens_per_second(self, _: list[torch.Tensor]) -> float:
        self.runs += 1
        folder = self.scratch / f"{self.config.stem}-{self.runs}"
        return training_speed(self.degu, self.config, folder).tokens_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--degu", help="the binary (default: the checkout's release build)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3, help="each side takes its steps this many times")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per side and round")
    parser.add_argument("--variants", nargs="+", default=["transformers", "by hand", "dense"], metavar="NAME",
                        help="PyTorch variants whose names start with one of these")
    parser.add_argument("--fastest", action="store_true", help="degu with train.reproducible off")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    degu = find_degu(args.degu)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = pathlib.Path(scratch_name)
        say("train_vs_torch: preparing tokens")
        shards = prepare_random_text(scratch, degu, MOE.vocab, megabytes=4)
        batches = list(read_tokens(shards, BATCH * (args.steps + 1)).split(BATCH))
        sides: list[Any] = [DeguSide("degu", MOE, degu, shards, scratch, args),
                            DeguSide("degu dense", DENSE, degu, shards, scratch, args)]
        sides += torch_sides(args.precision, args.variants)
        for side in sides[2:]:
            say(f"train_vs_torch: warming up {side.name}")
            side.step(batches[0])
        rates: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(args.rounds):
            for side in sides:
                rates[side.name].append(side.tokens_per_second(batches))
                say(f"round {number + 1}/{args.rounds}  {side.name:<26}{rates[side.name][-1]:>9.0f} tokens/s")

    medians = {name: statistics.median(values) for name, values in rates.items()}

    def ratio(numerator: str, prefix: str) -> float | None:
        best = max((v for name, v in medians.items() if name.startswith(prefix)), default=None)
        return medians[numerator] / best if best else None

    result = {
        "ratio": ratio("degu", "transformers"), "ratio_by_hand": ratio("degu", "by hand"),
        "ratio_dense": ratio("degu dense", "dense"),
        "degu_moe_over_dense": medians["degu"] / medians["degu dense"],
        "precision": args.precision, "threads": args.threads, "rounds": args.rounds,
        "torch": torch.__version__, "variants": medians, "all_rounds": rates,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"\n{'':<26}{'tokens/s':>10}{'slowest':>10}{'fastest':>10}{'degu is':>10}")
    for name, median in sorted(medians.items(), key=lambda pair: -pair[1]):
        mine = medians["degu dense" if "dense" in name else "degu"]
        print(f"{name:<26}{median:>10.0f}{min(rates[name]):>10.0f}{max(rates[name]):>10.0f}"
              f"{mine / median:>9.2f}x")
    print(f"\n{args.precision}, {args.threads} threads, median of {args.rounds} rounds of {args.steps} steps; "
          f"degu's MoE runs at {result['degu_moe_over_dense']:.2f} of its dense twin")


if __name__ == "__main__":
    main()
