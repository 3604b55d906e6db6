"""Calling degu from scripts: where the binary is, runs that fail loudly, and text made on the spot."""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent


def find_degu(given: str | None = None) -> str:
    """The binary: as given, $DEGU, the checkout's release build, or the one on PATH."""
    candidates = [given or os.environ.get("DEGU"), str(ROOT / "build/release/src/cli/degu")]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    if not given and (found := shutil.which("degu")):
        return found
    raise SystemExit(f"no degu at {given or candidates[1]}: build it "
                     "(cmake --preset release && cmake --build --preset release) or give --degu")


def mpi_environment() -> dict[str, str]:
    """What scripts/env.sh sets, for a child that may start MPI in a container."""
    defaults = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none",
                "OMPI_MCA_odls_base_sigkill_timeout": "2"}
    return defaults | os.environ


def run_degu(degu: str, *arguments: object) -> str:
    """degu's standard output; its log is shown when it fails."""
    command = [degu, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=mpi_environment(), check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nexited with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def prepare_random_text(folder: pathlib.Path, degu: str, vocab: int, megabytes: float,
                        seed: int = 1) -> pathlib.Path:
    """Shards of made-up words with a natural spread of frequencies; for speed and agreement, not for learning."""
    generator = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (i + 2) for i in range(len(letters))]
    words = ["".join(generator.choices(letters, weights, k=generator.randint(2, 9)))
             for _ in range(max(4 * vocab, 2000))]
    frequency = [1 / (i + 3) for i in range(len(words))]
    lines, size = [], 0
    while size < megabytes * 1e6:
        line = " ".join(generator.choices(words, frequency, k=400)) + "\n\n"
        lines.append(line)
        size += len(line)
    text, prepared = folder / "random.txt", folder / "shards"
    text.write_text("".join(lines))
    run_degu(degu, "data", "prepare", text, "--out", prepared, "--vocab", vocab)
    return prepared


class TrainingSpeed(NamedTuple):
    tokens_per_second: float
    utilisation: float  # of the peak that the run measured at its start


def training_speed(degu: str, config: pathlib.Path, folder: pathlib.Path, ranks: int = 1) -> TrainingSpeed:
    """`degu train` of a config with train.log_every 1: its median step, the first one left out."""
    command = ["mpirun", "-n", str(ranks), degu] if ranks > 1 else [degu]
    run_degu(*command, "train", config, "--out", folder)
    environment = json.loads((folder / "environment.json").read_text())
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "seconds" in line]
    seconds = statistics.median(after["seconds"] - before["seconds"] for before, after in zip(steps, steps[1:]))
    tokens = steps[1]["tokens"] - steps[0]["tokens"]
    return TrainingSpeed(tokens / seconds,
                         tokens / seconds * environment["flops_per_token"] / environment["peak_flops"])
