"""The parts of gpu_vs_torch.py with the real program at sizes that try the logic, on the CPU; the peers are stubs.

  gpu_parts_test.py DEGU

What degu prints and takes is what the parts read and give, so that no option or key is found changed on the day of a
GPU.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPIED = ("scripts/bench/gpu_vs_torch.py", "scripts/bench/gpu_model_parts.py", "scripts/bench/gpu_bars.py",
          "scripts/degu_command.py", "configs/gpu/1_gpu_olmoe.yaml")


def run_part(folder: pathlib.Path, degu: str, part: str) -> dict[str, Any]:
    command = [sys.executable, folder / "gpu_vs_torch.py", part, "--degu", degu, "--tiny", "--device", "cpu", "--json",
               "--out", folder / f"{part}.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600,
                          env=os.environ | {"STUBS": "{}"})
    assert done.returncode == 0, f"{part}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    result: dict[str, Any] = json.loads(done.stdout)
    assert result == json.loads((folder / f"{part}.json").read_text())
    assert result["complete"] and not result["failures"], result
    for bar in result["bars"]:
        assert bar["degu"] and bar["beside"] and bar["met"] is not None, bar
    print(f"{part}: {len(result['bars'])} bars have an answer")
    return result


def main() -> int:
    degu = str(pathlib.Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for path in COPIED:
            shutil.copy(ROOT / path, folder)
        for peer in ("gpu_peers.py", "gpu_olmoe.py"):
            shutil.copy(ROOT / "tests" / "static" / "gpu_check_stubs.py", folder / peer)
        run_part(folder, degu, "grouped")
        run_part(folder, degu, "layer")
        trained = run_part(folder, degu, "train")["details"]["degu"]
        assert trained["flops_per_token"] > 0 and trained["tokens_per_second"] > 0, trained
        assert run_part(folder, degu, "decode")["details"]["degu_w4a16"]["decode"], "rounds by streams"
    return 0


if __name__ == "__main__":
    sys.exit(main())
