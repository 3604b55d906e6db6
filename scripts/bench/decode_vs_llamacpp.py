#!/usr/bin/env python3
"""Serving speed of one model in degu and in llama.cpp, in alternation, with the same bits per weight.

  $(scripts/llamacpp_venv.sh | tail -n 1) scripts/bench/decode_vs_llamacpp.py [--models small large] [--json]

Two models, random weights written straight in each side's own quantized file (nothing unquantized exists):
  small   width 512, 8 blocks, 16 experts of width 512 of which a token visits 2 (142M parameters, 38M active)
  large   width 2048, 16 blocks, 64 experts of width 1024, 8 visited (6.9B parameters, 1.3B active)
in INT8 (w8a8 and Q8_0: 8.5 bits) and INT4 (w4a8 and Q4_0: 4.5 bits). The sides run one at a time, in a process of
their own, in alternation; each is timed on
  prefill     512 tokens of one sequence, logits of the last
  decode      one token per pass of one stream, and of 16 together; random tokens, logits of all
and degu also on loading (against a cold read of its file) and resident memory. Read bandwidth is probed before and
after each decode; it moves in spells, so decodes count whose probes lie within 15 % of the usual (fast spells left out), and
both sides run again when one has none. Bars: see BARS. Needs 16 GB of disk and 10 GB of memory for the large model.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from degu_command import find_degu  # noqa: E402  (after the path is set)

SHAPES: dict[str, dict[str, int]] = {
    "small": {"vocab": 32000, "width": 512, "layers": 8, "heads": 8, "experts": 16, "top_k": 2, "expert_width": 512},
    "large": {"vocab": 50304, "width": 2048, "layers": 16, "heads": 16, "experts": 64, "top_k": 8,
              "expert_width": 1024},
}
SCHEMES = {"int8": ("w8a8", "Q8_0"), "int4": ("w4a8", "Q4_0")}
# Each: the quantity, whether more is better, the bar.
BARS = {"decode_ratio": (True, 1.0), "decode_share_of_bandwidth": (True, 0.90), "prefill_ratio": (True, 2.5),
        "decode_16_ratio": (True, 2.0), "load_over_cold_read": (False, 1.2),
        "resident_over_weights_and_cache": (False, 1.10)}
STEADY = 1.15  # probes within this factor of the usual bandwidth are of the same spell


def say(text: str) -> None:
    print(f"decode_vs_llamacpp: {text}", file=sys.stderr, flush=True)


class Runner:
    """Runs measuring processes, one at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.degu = find_degu(args.degu)
        self.prefix = shlex.split(args.run_under)
        self.threads = args.threads
        self.timing = ["--prompt", "512", "--tokens", str(args.tokens), "--depth", str(args.depth),
                       "--threads", str(args.threads), "--rounds", str(args.rounds), "--streams", "1,16"]

    def json(self, *command: object) -> dict[str, Any]:
        words = [*self.prefix, *map(str, command)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(words)}\nexited with {done.returncode}")
        return json.loads(done.stdout)

    def time_degu(self, checkpoint: pathlib.Path) -> dict[str, Any]:
        evict(checkpoint)
        return self.json(self.degu, "bench", "decode", checkpoint, *self.timing, "--json")

    def time_llamacpp(self, file: pathlib.Path) -> dict[str, Any]:
        return self.json(sys.executable, ROOT / "scripts/bench/llamacpp_models.py", "time", file,
                         "--degu", self.degu, *self.timing)

    def cold_read(self, checkpoint: pathlib.Path) -> float:
        """Seconds to read the checkpoint's files from the disk, plainly and in order."""
        evict(checkpoint)
        return self.json(sys.executable, "-c", COLD_READ, *sorted(checkpoint.glob("*.h5")))["seconds"]


COLD_READ = """
import json, os, sys, time
buffer = bytearray(8 << 20)
start = time.perf_counter()
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while file.readinto(buffer):
            pass
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def evict(folder: pathlib.Path) -> None:
    """Drops the folder's files from the page cache, as far as the system lets go of them."""
    for path in folder.glob("*.h5"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def write_models(runner: Runner, folder: pathlib.Path, name: str, level: str) -> tuple[pathlib.Path, pathlib.Path]:
    shape = SHAPES[name]
    scheme, kind = SCHEMES[level]
    config, described = folder / f"{name}.yaml", folder / f"{name}.json"
    moe = {key: shape[key] for key in ("experts", "top_k", "expert_width")}
    model = {key: shape[key] for key in ("vocab", "width", "layers", "heads")}
    config.write_text(yaml.safe_dump({"model": {**model, "qk_norm": True, "tied_head": False, "moe": moe},
                                      "data": {"sequence_length": 1024}}))
    described.write_text(json.dumps(shape))
    checkpoint, file = folder / f"{name}-{scheme}", folder / f"{name}-{kind}.gguf"
    say(f"{name} {level}: writing {checkpoint.name} and {file.name}")
    subprocess.run([runner.degu, "bench", "checkpoint", config, "--scheme", scheme, "--out", checkpoint],
                   check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, ROOT / "scripts/bench/llamacpp_models.py", "write", described,
                    "--format", kind, "--out", file], check=True)
    os.sync()
    return checkpoint, file


def decodes(runs: list[dict[str, Any]], streams: int) -> list[dict[str, Any]]:
    return [r for run in runs for d in run["decode"] if d["streams"] == streams for r in d["rounds"]]


def steady(rounds: list[dict[str, Any]], usual: float) -> list[dict[str, Any]]:
    return [r for r in rounds if usual / STEADY <= min(r["probes"]) and max(r["probes"]) <= STEADY * usual]


def usual_bandwidth(runs: dict[str, list[dict[str, Any]]]) -> float:
    """The median of all probes outside fast spells (a third above what a fifth of the probes stay below)."""
    probes = sorted(p for side in runs.values() for streams in (1, 16) for r in decodes(side, streams)
                    for p in r["probes"])
    return statistics.median(p for p in probes if p <= 1.33 * probes[len(probes) // 5])


def settled(runs: dict[str, list[dict[str, Any]]]) -> bool:
    usual = usual_bandwidth(runs)
    return all(steady(decodes(side, streams), usual) for side in runs.values() for streams in (1, 16))


def compare(runner: Runner, checkpoint: pathlib.Path, file: pathlib.Path, alternations: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"degu": [], "llama.cpp": []}
    cold = []
    for number in range(alternations + 2):  # two more at most, for spells
        if number >= alternations and settled(runs):
            break
        cold.append(runner.cold_read(checkpoint))
        for side, run in (("degu", lambda: runner.time_degu(checkpoint)),
                          ("llama.cpp", lambda: runner.time_llamacpp(file))):
            result = run()
            runs[side].append(result)
            rates = {s: statistics.median(r["tokens_per_second"] for r in decodes([result], s)) for s in (1, 16)}
            say(f"  {side:<10} prefill {result['prefill']['tokens_per_second']:.0f}, decode {rates[1]:.1f}, "
                f"16 streams {rates[16]:.1f} tokens/s")
    usual = usual_bandwidth(runs)

    def rate(side: str, streams: int) -> float:
        kept = steady(decodes(runs[side], streams), usual) or decodes(runs[side], streams)
        return statistics.median(r["tokens_per_second"] for r in kept)

    def prefill(side: str) -> float:
        return statistics.median(run["prefill"]["tokens_per_second"] for run in runs[side])

    one = steady(decodes(runs["degu"], 1), usual) or decodes(runs["degu"], 1)
    loads = [run["load_seconds"] for run in runs["degu"]]
    result: dict[str, Any] = {
        "decode_ratio": rate("degu", 1) / rate("llama.cpp", 1),
        "decode_share_of_bandwidth": statistics.median(r["share_of_probe"] for r in one),
        "prefill_ratio": prefill("degu") / prefill("llama.cpp"),
        "decode_16_ratio": rate("degu", 16) / rate("llama.cpp", 16),
        "load_over_cold_read": statistics.median(load / read for load, read in zip(loads, cold)),
        "resident_over_weights_and_cache": statistics.median(
            run["resident_over_weights_and_cache"] for run in runs["degu"]),
        "steady": settled(runs),
        "tokens_per_second": {side: {"prefill": prefill(side), "decode": rate(side, 1), "decode_16": rate(side, 16)}
                              for side in runs},
        "bytes_per_token": statistics.median(r["bytes_per_pass"] for r in one),
        "read_bandwidth": usual, "load_seconds": loads, "cold_read_seconds": cold,
        "weight_bytes": runs["degu"][0]["weight_bytes"],
        "peak_resident_bytes": {side: statistics.median(r["peak_resident_bytes"] for r in runs[side])
                                for side in runs},
        "runs": runs}
    result["bars"] = {name: result[name] >= bar if more else result[name] <= bar
                      for name, (more, bar) in BARS.items()}
    return result


def table(results: dict[str, Any]) -> None:
    print(f"\n{'':<14}{'':<34}{'bar':>6}{'measured':>10}")
    for name, result in results.items():
        for key, (more, bar) in BARS.items():
            mark = "" if result["bars"][key] else "  misses"
            print(f"{name:<14}{key:<34}{'>=' if more else '<='}{bar:>5.2f}{result[key]:>9.2f}{mark}")
        for side, rates in result["tokens_per_second"].items():
            print(f"{'':<14}{side}: " + ", ".join(f"{what} {value:.1f}" for what, value in rates.items())
                  + " tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--degu", help="the binary (default: the checkout's release build)")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--levels", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alternations", type=int, default=3, help="of the two sides, per model and level")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement within a process")
    parser.add_argument("--tokens", type=int, default=64, help="passes of a decode")
    parser.add_argument("--depth", type=int, default=0, help="tokens in each stream's cache before its decode")
    parser.add_argument("--folder", type=pathlib.Path, help="where models are written (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the models there, and use those that are")
    parser.add_argument("--run-under", default="", metavar="COMMAND",
                        help="put before every measuring process: taskset, nice, a lock")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args()
    runner = Runner(args)
    results: dict[str, Any] = {}
    start = time.time()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = args.folder if args.keep and args.folder else pathlib.Path(scratch)
        for name in args.models:
            for level in args.levels:
                scheme, kind = SCHEMES[level]
                checkpoint, file = folder / f"{name}-{scheme}", folder / f"{name}-{kind}.gguf"
                if not (args.keep and checkpoint.exists() and file.exists()):
                    write_models(runner, folder, name, level)
                results[f"{name} {level}"] = compare(runner, checkpoint, file, args.alternations)
                if not args.keep:  # one model at a time
                    shutil.rmtree(checkpoint)
                    file.unlink()
    if args.json:
        print(json.dumps({"models": results, "threads": args.threads, "depth": args.depth,
                          "seconds": time.time() - start}))
    else:
        table(results)


if __name__ == "__main__":
    main()
