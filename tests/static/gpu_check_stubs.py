"""Programs that stand in for a GPU node's in gpu_check_test.py: one file, which does what its name says.

A program's name and, for degu, its subcommand make a step: "kernels_test", "degu train", "peer layer". $STUBS holds
what steps shall do instead of their work: a JSON object from a step to "fail", "hang", "slow" (a bar then misses it),
"missing" (a module that is not installed) or "large" (too many layers for the memory).
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from typing import Any

FLOPS_PER_TOKEN = 1e6
DENSE = 1e12
PLANNED = 12e9
TOKENS = 16 * 4096  # of a training step


def behaviour(step: str) -> str:
    found = json.loads(os.environ.get("STUBS", "{}")).get(step, "")
    if found == "hang":
        time.sleep(600)
    if found == "fail":
        print(f"{step}: DeviceError: a kernel failed", file=sys.stderr)
        sys.exit(1)
    if found == "missing":
        raise ModuleNotFoundError("No module named 'torch'")
    return str(found)


def say(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def degu_kernels(speed: float) -> dict[str, Any]:
    names = ("grouped_gemm", "grouped_gemm dX", "grouped_gemm_dw, 8 units")
    return {"hardware": {}, "operators": [{"operator": name, "size": "E=64 R=1", "bound": "bf16", "bar": 0.6,
                                           "rate": speed * 0.8 * DENSE, "ratio": 0.5} for name in names]}


def degu_layer(speed: float) -> dict[str, Any]:
    return {"cases": [{"case": case, "tokens_per_second": speed * 2e6, "rate": 1.0, "ratio": 0.5}
                      for case in ("forward", "forward + backward")]}


def degu_train(speed: float) -> dict[str, Any]:
    if behaviour("degu train") == "large" and "model.layers=16" in sys.argv:
        print("degu: allocating device memory: out of memory", file=sys.stderr)
        sys.exit(1)
    folder = pathlib.Path(option("--out"))
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"flops_per_token": FLOPS_PER_TOKEN}))
    step = TOKENS * FLOPS_PER_TOKEN / (speed * 0.5 * DENSE)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "seconds": {i * step}}}\n' for i in range(8)))
    time.sleep(0.7)  # for nvidia-smi
    return {"train_loss": 1.0, "memory": {"planned": PLANNED, "taken": PLANNED}}


def degu_decode(speed: float) -> dict[str, Any]:
    time.sleep(0.7)
    rounds = [{"tokens_per_second": speed * 1000.0, "bandwidth": speed * 3e12, "share_of_probe": speed * 0.6}]
    return {"decode": [{"streams": n, "rounds": rounds} for n in (1, 64)],
            "memory": {"planned": PLANNED, "taken": PLANNED}}


def degu() -> None:
    step = sys.argv[2] if sys.argv[1] == "bench" else sys.argv[1]
    speed = 0.1 if behaviour(f"degu {step}") == "slow" else 1.0
    if step == "checkpoint":
        return
    if step == "kernels" and "--json" not in sys.argv:
        print("grouped_gemm, a row of a table")
        return
    made = {"kernels": degu_kernels, "layer": degu_layer, "train": degu_train, "decode": degu_decode}
    print(json.dumps(made[step](speed)))


def peer() -> None:
    part = sys.argv[1]
    first = {"dense": {"name": "dense", "rate": DENSE}, "grouped": {"name": "dense", "rate": DENSE},
             "layer": {"name": "eager", "forward": 1e6, "both": 1e6},
             "train": {"name": "eager", "tokens_per_second": 1e5, "holds": "bf16"},
             "decode": {"name": "eager", "tokens_per_second": 100.0}}
    behaviour(f"peer {part} first")
    if part == "train":
        say(first["dense"])
    say(first[part])
    behaviour(f"peer {part}")
    if part == "grouped":
        say({"name": "forward", "rate": DENSE})
    if part == "layer":
        say({"left_out": "layer compiled: no compiler"})


def nvidia_smi() -> None:
    if behaviour("nvidia-smi") == "none":
        sys.exit(9)
    if "-L" in sys.argv:
        print("GPU 0: NVIDIA Stub (UUID: GPU-0)")
        return
    more = 20000 if behaviour("nvidia-smi") == "slow" else PLANNED / 2**20 + 400
    print("600", flush=True)
    while True:
        time.sleep(0.1)
        print(int(600 + more), flush=True)


def main() -> None:
    name = pathlib.Path(sys.argv[0]).name
    own = {"degu": degu, "nvidia-smi": nvidia_smi, "gpu_peers.py": peer, "gpu_olmoe.py": peer}
    if name in own:
        own[name]()
    else:
        behaviour(name)
        print(f"{name}: all tests passed")


if __name__ == "__main__":
    main()
