"""The parts of gpu_vs_torch.py that take a whole model: training it, and decoding with it.

The model is that of configs/gpu/1_gpu_olmoe.yaml, 1.3B active parameters of 6.9B; transformers' side is
OlmoeForCausalLM of the same sizes. Weights are random, and so is the text.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from gpu_bars import (HERE, Bar, Clock, DeviceMemory, Report, dense_rate, give_up, resource, run, run_degu,
                      run_peer)

sys.path[:0] = [str(HERE), str(HERE.parent)]  # in a bundle beside this file

from degu_command import prepare_random_text  # noqa: E402  (after the path is set)

TRANSFORMERS = "transformers' best"
VOCAB, LAYERS, SEQUENCE, BATCH = 50304, 16, 4096, 16
MODEL: dict[str, Any] = {"vocab": VOCAB, "width": 2048, "layers": LAYERS, "heads": 16,
                         "moe": {"experts": 64, "top_k": 8, "expert_width": 1024, "renormalize": False}}
TINY: dict[str, Any] = {"vocab": 512, "width": 64, "layers": 2, "heads": 2,
                        "moe": {"experts": 8, "top_k": 2, "expert_width": 32, "renormalize": False}}
TINY_SEQUENCE, TINY_BATCH = 64, 4
WARM_STEPS, TIMED_STEPS = 2, 4


def model_of(args: argparse.Namespace, layers: int = 0) -> dict[str, Any]:
    model = TINY if args.tiny else MODEL
    return model | ({"layers": layers} if layers else {})


def overrides(model: dict[str, Any], args: argparse.Namespace, **others: object) -> list[str]:
    """--set for degu: the model's sizes over those of the configuration, and `others` with __ for a dot."""
    values: dict[str, object] = {f"model.{key}": value for key, value in model.items() if key != "moe"}
    values |= {f"model.moe.{key}": value for key, value in model["moe"].items()}
    values |= {"data.sequence_length": TINY_SEQUENCE if args.tiny else SEQUENCE, "cluster.device": args.device}
    values |= {key.replace("__", "."): value for key, value in others.items()}
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@contextlib.contextmanager
def scratch_folder(args: argparse.Namespace, gigabytes: float) -> Iterator[pathlib.Path]:
    """A folder that is gone afterwards: in memory where that has room, for a disk would take longer than the rest."""
    parent = args.scratch
    if parent is None:
        memory = pathlib.Path("/dev/shm")
        if memory.is_dir() and shutil.disk_usage(memory).free > gigabytes * 1e9:
            parent = memory
    with tempfile.TemporaryDirectory(dir=parent, prefix="degu-") as name:
        yield pathlib.Path(name)


def shards_for(args: argparse.Namespace, folder: pathlib.Path) -> pathlib.Path:
    if args.shards:
        return pathlib.Path(args.shards)
    if not args.tiny and (HERE / "shards" / "manifest.json").exists():
        return HERE / "shards"
    made: pathlib.Path = prepare_random_text(folder, args.degu, model_of(args)["vocab"], 0.5 if args.tiny else 8)
    return made


def step_seconds(metrics: pathlib.Path) -> float:
    """Of the median step behind the first ones, by a run's own lines (train.log_every: 1)."""
    lines = [json.loads(text) for text in metrics.read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    steps = [after - before for before, after in zip(seconds, seconds[1:])]
    return float(statistics.median(steps[WARM_STEPS - 1:]))


def train_degu(args: argparse.Namespace, report: Report, clock: Clock, folder: pathlib.Path,
               shards: pathlib.Path) -> dict[str, Any] | None:
    """One run, of the whole model or, where that has no room, of fewer of its layers."""
    attempts = [(TINY["layers"], TINY_BATCH // 2)] if args.tiny else [(LAYERS, 2), (LAYERS, 1), (LAYERS // 2, 4)]
    for layers, micro in attempts:
        out = folder / f"run-{layers}-{micro}"
        # Neither side has balancing losses: transformers' are slow.
        sets = overrides(model_of(args, layers), args, data__paths=[str(shards)], train__steps=WARM_STEPS + TIMED_STEPS,
                         data__validation_tokens=TINY_SEQUENCE if args.tiny else SEQUENCE, train__tokens=0,
                         train__batch_sequences=TINY_BATCH if args.tiny else BATCH,
                         train__micro_batch_sequences=micro, train__log_every=1, train__evaluate_every=0,
                         train__checkpoint_every=0, train__balance__aux_loss=0, train__balance__z_loss=0)
        command = [args.degu, "train", resource("configs/gpu/1_gpu_olmoe.yaml"), "--out", out, "--no-checkpoint",
                   "--json", *sets]
        with DeviceMemory() as memory:
            done = run(command, clock.share(0.6))
        what = f"{layers} layers, {micro} sequences a pass"
        if done.ok:
            result: dict[str, Any] = json.loads(done.out)
            environment = json.loads((out / "environment.json").read_text())
            batch = TINY_BATCH * TINY_SEQUENCE if args.tiny else BATCH * SEQUENCE
            return {"layers": layers, "micro": micro, "tokens_per_second": batch / step_seconds(out / "metrics.jsonl"),
                    "flops_per_token": environment["flops_per_token"], "memory": result["memory"],
                    "device_memory": memory.taken, "seconds": done.seconds, "loss": result["train_loss"]}
        if done.code is None or "out of memory" not in done.reason():
            give_up(report, f"degu train, {what}", done)
            return None
        report.note(f"degu train, {what}, has no room: {done.reason()}")
    report.fail("degu train: no depth that was tried fits")
    return None


def set_memory(args: argparse.Namespace, report: Report, name: str, memory: dict[str, float],
               device: float | None) -> None:
    """The plan beside what the device says; where nothing but the processor computed, beside what the process took."""
    report.note(f"{name}: {memory['planned'] / 1e9:.2f} GB planned, {memory['taken'] / 1e9:.2f} GB allocated by degu "
                "at most")
    if device is None and args.device == "cuda":
        report.leave_out(f"{name}: nvidia-smi does not say what is in use")
    if args.device == "cpu":
        report.set(name, degu=memory["planned"], beside=memory["taken"], beside_what="what the process took")
    else:
        report.set(name, degu=memory["planned"], beside=device)


def train(args: argparse.Namespace, report: Report, clock: Clock) -> None:
    share, ratio, room = "train, share of dense", "train beside transformers", "train, memory planned"
    report.expect(Bar(share, "FLOP/s", 0.45, "dense bf16 product"), Bar(ratio, "tokens/s", 1.5, TRANSFORMERS),
                  Bar(room, "B", 0.05, "what nvidia-smi says", rule="within"))
    with scratch_folder(args, 1) as folder:
        try:
            shards = shards_for(args, folder)
        except SystemExit as error:
            report.fail(f"preparing text: {error}")
            return
        found = train_degu(args, report, clock, folder, shards)
    layers = found["layers"] if found else 0
    if found:
        report.detail(degu=found)
        rate = found["tokens_per_second"]
        if not args.tiny and layers < LAYERS:
            report.note(f"both sides have {layers} of the model's {LAYERS} layers: all of them had no room")
        report.note(f"degu held fp32 weights and gradients, bf16 moments and bf16 copies of the weights for both "
                    f"passes; {found['micro']} sequences a pass, nothing computed again")
        report.set(share, degu=rate * found["flops_per_token"])
        report.set(ratio, degu=rate)
        set_memory(args, report, room, found["memory"], found["device_memory"])
    sizes: list[object] = ["--sequence", SEQUENCE, "--batch", BATCH]
    if args.tiny:
        sizes = ["--sequence", TINY_SEQUENCE, "--batch", TINY_BATCH, "--micro", 2, 1, "--steps", 2, "--tiny"]
    peers = run_peer(report, "gpu_olmoe.py", ["train", "--model", json.dumps(model_of(args, layers)), "--device",
                                              args.device, *sizes], clock.share())
    if dense := dense_rate(report, peers):
        report.set(share, beside=dense)
    peers = [row for row in peers if row["name"] != "dense"]
    report.detail(peers=peers)
    if peers:
        best = max(peers, key=lambda row: row["tokens_per_second"])
        report.set(ratio, beside=best["tokens_per_second"], beside_what=f"{TRANSFORMERS}: {best['name']}")
        report.note(f"transformers held {best['holds']}")


def decode_degu(args: argparse.Namespace, report: Report, scheme: str, streams: list[int],
                clock: Clock, share: float) -> dict[str, Any] | None:
    """bench decode of random weights in a scheme, by streams, with what was in memory."""
    config = resource("configs/gpu/1_gpu_olmoe.yaml")
    prompt, tokens, rounds = (16, 4, 1) if args.tiny else (128, 32, 3)
    limit = Clock(clock.share(share))
    with scratch_folder(args, 20) as folder:
        sets = overrides(model_of(args), args)
        made = run([args.degu, "bench", "checkpoint", config, "--scheme", scheme, "--out", folder / "model", *sets],
                   limit.share())
        if not made.ok:
            give_up(report, f"degu bench checkpoint, {scheme}", made)
            return None
        with DeviceMemory() as memory:
            found = run_degu(report, f"bench decode, {scheme}",
                             [args.degu, "bench", "decode", folder / "model", "--device", args.device, "--json",
                              "--prompt", prompt, "--depth", prompt, "--tokens", tokens, "--rounds", rounds,
                              "--streams", ",".join(map(str, streams))], limit.share())
    if found:
        report.detail(**{f"degu_{scheme}": found | {"checkpoint_seconds": made.seconds,
                                                    "device_memory": memory.taken}})
    return found


def median_round(found: dict[str, Any], streams: int, key: str) -> float:
    rounds = next(entry["rounds"] for entry in found["decode"] if entry["streams"] == streams)
    return float(statistics.median(each[key] for each in rounds))


def decode(args: argparse.Namespace, report: Report, clock: Clock) -> None:
    many = 4 if args.tiny else 64
    bars = {"bf16": 0.55, "w4a16": 0.35}
    ratio, room = f"decode bf16, {many} streams", "decode bf16, memory planned"
    report.expect(*(Bar(f"decode {scheme}, 1 stream", "B/s", bar, "read bandwidth") for scheme, bar in bars.items()),
                  Bar(ratio, "tokens/s", 2.0, TRANSFORMERS),
                  Bar(room, "B", 0.05, "what nvidia-smi says", rule="within"))
    for scheme, share in zip(bars, (0.4, 0.35)):
        found = decode_degu(args, report, scheme, [1, many], clock, share)
        if not found:
            continue
        bandwidth = median_round(found, 1, "bandwidth")
        report.set(f"decode {scheme}, 1 stream", degu=bandwidth,
                   beside=bandwidth / median_round(found, 1, "share_of_probe"))
        alone, together = (median_round(found, n, "tokens_per_second") for n in (1, many))
        report.note(f"{scheme}: {alone:.1f} tokens/s with one stream, {together:.0f} with {many}; graphs: "
                    f"{found.get('graphs', 'none on this device')}")
        if scheme == "bf16":
            report.set(ratio, degu=together)
            set_memory(args, report, room, found["memory"], report.details["degu_bf16"]["device_memory"])
    sizes: list[object] = ["--batch", many, "--sequence", 512]
    if args.tiny:
        sizes += ["--prompt", 16, "--tokens", 8]
    peers = run_peer(report, "gpu_olmoe.py", ["decode", "--model", json.dumps(model_of(args)), "--device", args.device,
                                              *sizes], clock.share())
    report.detail(peers=peers)
    if peers:
        best = max(peers, key=lambda row: row["tokens_per_second"])
        report.set(ratio, beside=best["tokens_per_second"], beside_what=f"{TRANSFORMERS}: {best['name']}")
