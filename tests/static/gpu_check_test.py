"""scripts/gpu_check.sh and the parts behind it without a GPU: every program of a node is a stub (gpu_check_stubs.py),
and what they do decides verdicts, exit codes, what is left out and what the report says."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUBS = ROOT / "tests" / "static" / "gpu_check_stubs.py"
TESTS = ("kernels_test", "tensor_test", "device_run_test", "infer_test", "decode_graphs_test", "engine_device_test",
         "layer_bench_test")
SCRIPTS = ("gpu_vs_torch.py", "gpu_model_parts.py", "gpu_bars.py", "gpu_report.py")
PARTS = ("tests", "sanitizer", "kernels", "grouped", "layer", "train", "decode")

Report = dict[str, Any]


class Node:
    """A folder that is laid out like a checkout with a bundle, and a PATH whose first folder has the stubs."""

    def __init__(self, folder: pathlib.Path, sanitizer: bool = True) -> None:
        self.folder, self.out = folder, folder / "out"
        bundle, programs = folder / "build" / "gpu_check" / "bundle", folder / "bin"
        for made in (folder / "scripts", bundle / "shards", programs, self.out):
            made.mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "gpu_check.sh", folder / "scripts")
        shutil.copy(ROOT / "scripts" / "degu_command.py", bundle)
        shutil.copy(ROOT / "configs" / "gpu" / "1_gpu_olmoe.yaml", bundle)
        for name in SCRIPTS:
            shutil.copy(ROOT / "scripts" / "bench" / name, bundle)
        (bundle / "shards" / "manifest.json").write_text("{}")
        (bundle / "VERSION").write_text("abc1234\n")
        self.stub(bundle, "degu", *TESTS)
        for name in ("gpu_peers.py", "gpu_olmoe.py"):
            shutil.copy(STUBS, bundle / name)
        self.stub(programs, "nvidia-smi", *(["compute-sanitizer"] if sanitizer else []))
        (programs / "python3").symlink_to(sys.executable)

    @staticmethod
    def stub(folder: pathlib.Path, *names: str) -> None:
        for name in names:
            (folder / name).write_text(f"#!{sys.executable}\n{STUBS.read_text()}")
            (folder / name).chmod(0o755)

    def run(self, *arguments: str, seconds: int = 530, **stubs: str) -> tuple[int, Report, str]:
        """Exit code, report.json and report.md."""
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "OUT": str(self.out),
            "DEGU_GPU_CHECK_SECONDS": str(seconds),
            "STUBS": json.dumps({step.replace("__", " "): what for step, what in stubs.items()})}
        done = subprocess.run([self.folder / "scripts" / "gpu_check.sh", *arguments], env=environment, check=False,
                              capture_output=True, text=True, timeout=120)
        made = self.folder / "build" / "gpu_check" / "report.json"
        if not made.exists():
            return done.returncode, {}, done.stderr
        assert (self.out / "report.json").read_text() == made.read_text()
        return done.returncode, json.loads(made.read_text()), (self.out / "report.md").read_text()


def verdicts(report: Report) -> dict[str, str]:
    return {name: part["verdict"] for name, part in report["parts"].items()}


def bars(report: Report, part: str) -> dict[str, Any]:
    return {bar["name"]: bar for bar in report["parts"][part]["result"]["bars"]}


def everything_passes(node: Node) -> None:
    code, report, text = node.run("--run")
    assert code == 0, text
    assert verdicts(report) == dict.fromkeys(PARTS, "passed"), verdicts(report)
    assert report["version"] == "abc1234" and report["gpu"] == "GPU 0: NVIDIA Stub" and report["left_out"] == []
    assert abs(bars(report, "train")["train, share of dense"]["ratio"] - 0.5) < 1e-9
    assert abs(bars(report, "decode")["decode bf16, 1 stream"]["ratio"] - 0.6) < 1e-9
    memory = bars(report, "decode")["decode bf16, memory planned"]
    assert memory["met"] and abs(memory["beside"] / 2**20 - (12e9 / 2**20 + 400)) < 2, memory
    assert "layer compiled: no compiler" in text and "| grouped dX |" in text and "## tests: passed" in text
    assert "grouped_gemm, a row of a table" in text and report["parts"]["kernels"]["said"], text
    assert sum(part["limit_seconds"] for part in report["parts"].values()) < 9 * 60


def nothing_to_run_with(node: Node) -> None:
    assert node.run("--run", **{"nvidia-smi": "none"})[0] == 3
    assert node.run("--run", "everything")[0] == 2
    assert node.run("--walk")[0] == 2
    (node.folder / "build" / "gpu_check" / "bundle" / "degu").unlink()
    code, report, text = node.run("--run")
    assert code == 2 and not report and "no bundle here" in text


def failures_show(node: Node) -> None:
    code, report, text = node.run("--run", "tests", "layer", "kernels", kernels_test="fail", degu__layer="fail",
                                  degu__kernels="fail")
    assert code == 1 and verdicts(report) == dict.fromkeys(("tests", "layer", "kernels"), "failed"), text
    assert "a kernel failed" in text and "kernels_test: exit 1" in text
    assert bars(report, "layer")["layer forward"]["met"] is None
    code, report, text = node.run("--run", "train", "decode", degu__train="fail", degu__checkpoint="fail")
    assert code == 1 and verdicts(report) == {"train": "failed", "decode": "failed"}, text


def missed_bars_show(node: Node) -> None:
    code, report, text = node.run("--run", "grouped", "layer", "train", "decode", degu__kernels="slow",
                                  degu__layer="slow", degu__train="slow", degu__decode="slow")
    assert code == 1 and set(verdicts(report).values()) == {"missed"}, text
    assert text.count("**missed**") == 3 + 2 + 2 + 3, text
    code, report, text = node.run("--run", "train", **{"nvidia-smi": "slow"})  # uses more than was planned
    assert code == 1 and bars(report, "train")["train, memory planned"]["met"] is False, text


def smaller_depth_where_there_is_no_room(node: Node) -> None:
    code, report, text = node.run("--run", "train", degu__train="large")
    assert code == 0 and verdicts(report) == {"train": "passed"}, text
    assert report["parts"]["train"]["result"]["details"]["degu"]["layers"] == 8
    assert "both sides have 8 of the model's 16 layers" in text and text.count("has no room") == 2, text


def hangs_are_incomplete(node: Node) -> None:
    code, report, text = node.run("--run", "tests", seconds=2, tensor_test="hang")
    assert code == 0 and verdicts(report) == {"tests": "incomplete"} and "cut short" in text, text
    code, report, text = node.run("--run", "layer", seconds=16, peer__layer="hang")
    assert code == 0 and verdicts(report) == {"layer": "incomplete"}, text
    assert bars(report, "layer")["layer forward"]["met"], "what the peer had said counts"
    assert "s were up" in text and report["parts"]["layer"]["result"]["complete"] is False
    code, report, text = node.run("--run", "layer", peer__layer="fail")
    assert code == 0 and verdicts(report) == {"layer": "incomplete"} and "a kernel failed" in text, text
    code, report, text = node.run("--run", "layer", seconds=16, degu__layer="hang")
    assert code == 0 and verdicts(report) == {"layer": "incomplete"}, text
    code, report, text = node.run("--run", "kernels", seconds=2, degu__kernels="hang")
    assert code == 0 and verdicts(report) == {"kernels": "incomplete"}, text


def missing_peers_are_left_out(node: Node) -> None:
    absent = {f"peer {part} first": "missing" for part in ("grouped", "layer", "train", "decode")}
    code, report, text = node.run("--run", **absent)
    assert code == 0, text
    assert verdicts(report) == {"tests": "passed", "kernels": "passed", "grouped": "incomplete",
                                "layer": "incomplete", "train": "incomplete", "decode": "incomplete"}, text
    assert report["left_out"] == ["sanitizer (no compute-sanitizer)"] and "Left out: sanitizer" in text
    assert "No module named 'torch'" in text
    assert bars(report, "grouped")["grouped dW"]["degu"] and bars(report, "grouped")["grouped dW"]["met"] is None
    assert bars(report, "decode")["decode w4a16, 1 stream"]["met"], "what needs no peer is answered"


CASES: dict[Callable[[Node], None], bool] = {  # whether the node has compute-sanitizer
    everything_passes: True, nothing_to_run_with: True, failures_show: True, missed_bars_show: True,
    smaller_depth_where_there_is_no_room: True,
    hangs_are_incomplete: True, missing_peers_are_left_out: False}


def problem(case: Callable[[Node], None]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            case(Node(pathlib.Path(folder), sanitizer=CASES[case]))
        except (AssertionError, KeyError, subprocess.TimeoutExpired) as error:
            return f"{case.__name__}: {type(error).__name__}: {error}"
    return ""


def main() -> int:
    with ThreadPoolExecutor() as pool:
        problems = [text for text in pool.map(problem, CASES) if text]
    for text in problems:
        print(text)
    print(f"{len(CASES)} cases, {len(problems)} failures")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
