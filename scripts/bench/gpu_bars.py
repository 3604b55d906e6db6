"""What the parts of gpu_vs_torch.py share: bars, the report they fill, and programs run beside each other.

Only the standard library: PyTorch lives in the peers' processes (gpu_peers.py, gpu_olmoe.py), which come and go, so
that neither side holds memory that the other needs, and a peer that fails or hangs costs its own rows alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent


def resource(relative: str) -> pathlib.Path:
    """A file of the checkout, which in a bundle lies beside the scripts."""
    beside = HERE / pathlib.PurePath(relative).name
    return beside if beside.exists() else HERE.parent.parent / relative


@dataclasses.dataclass
class Bar:
    """One number of degu's beside another, and what their ratio should be.

    `rule` is "at least" (degu / beside >= bar), or "within" (they differ by at most the share `bar`). Without an answer
    to one of the two, `met` is None: the bar is neither met nor missed.
    """

    name: str
    unit: str
    bar: float
    beside_what: str
    degu: float | None = None
    beside: float | None = None
    rule: str = "at least"

    @property
    def ratio(self) -> float | None:
        return self.degu / self.beside if self.degu is not None and self.beside else None

    @property
    def met(self) -> bool | None:
        ratio = self.ratio
        if ratio is None:
            return None
        return abs(ratio - 1) <= self.bar if self.rule == "within" else ratio >= self.bar

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"ratio": self.ratio, "met": self.met}


@dataclasses.dataclass
class Report:
    """One part's results. Written anew after each of them, so that a part that is cut short leaves what it had."""

    part: str
    path: pathlib.Path | None = None
    bars: list[Bar] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    cut: bool = False
    complete: bool = False

    def expect(self, *bars: Bar) -> None:
        """Names what the part is to answer, before anything runs."""
        self.bars += bars
        self.save()

    def set(self, name: str, *, degu: float | None = None, beside: float | None = None,
            beside_what: str | None = None) -> None:
        bar = next(b for b in self.bars if b.name == name)
        bar.degu = bar.degu if degu is None else degu
        bar.beside = bar.beside if beside is None else beside
        bar.beside_what = beside_what or bar.beside_what
        self.save()

    def detail(self, **values: Any) -> None:
        self.details |= values
        self.save()

    def leave_out(self, text: str) -> None:
        print(f"{self.part}: left out: {text}", file=sys.stderr, flush=True)
        self.left_out.append(text)
        self.save()

    def fail(self, text: str) -> None:
        print(f"{self.part}: failed: {text}", file=sys.stderr, flush=True)
        self.failures.append(text)
        self.save()

    def cut_short(self, text: str) -> None:
        """Something did not come to its end: what it would have said is missing, also where a bar has an answer."""
        self.cut = True
        self.leave_out(text)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.save()

    def to_json(self) -> dict[str, Any]:
        return {"part": self.part, "complete": self.complete, "bars": [b.to_json() for b in self.bars],
                "left_out": self.left_out, "failures": self.failures, "notes": self.notes,
                "details": self.details}

    def save(self) -> None:
        if self.path is None:
            return
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        partial.replace(self.path)


def scaled(value: float | None, unit: str) -> str:
    """5.4e14 FLOP/s as "540.0 TFLOP/s"."""
    if value is None:
        return "-"
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor and not unit.startswith("tokens"):
            return f"{value / factor:.1f} {letter}{unit}"
    return f"{value:.1f} {unit}" if unit else f"{value:.3f}"


def table(result: dict[str, Any]) -> str:
    """A part's JSON for people, as a Markdown table with what was left out below it."""
    lines = ["| bar | degu | beside | which is | ratio | bar | |", "|---|---|---|---|---|---|---|"]
    for bar in result["bars"]:
        ratio = "-" if bar["ratio"] is None else f"{bar['ratio']:.3f}"
        wanted = f"1 ± {bar['bar']}" if bar["rule"] == "within" else f">= {bar['bar']}"
        verdict = {None: "no answer", True: "met", False: "**missed**"}[bar["met"]]
        lines.append(f"| {bar['name']} | {scaled(bar['degu'], bar['unit'])} | {scaled(bar['beside'], bar['unit'])} "
                     f"| {bar['beside_what']} | {ratio} | {wanted} | {verdict} |")
    for title, key in (("failed", "failures"), ("left out", "left_out"), ("note", "notes")):
        lines += [f"\n{title}: {text}" for text in result[key]]
    if not result["complete"]:
        lines.append("\ncut short before its end")
    return "\n".join(lines)


class Clock:
    """The seconds that a part has in all. `share(s)` are those of a step that may take so much of the rest."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def share(self, share: float = 1.0) -> float:
        return max(1.0, share * self.left())


@dataclasses.dataclass
class Done:
    """A program that has ended: its exit code (None when its time was up), and the last of what it said."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.code == 0

    def reason(self) -> str:
        if self.code is None:
            return f"its {self.seconds:.0f} s were up"
        lines = [line for line in self.err.splitlines() if line.strip()]
        return f"exit {self.code}: {lines[-1].strip()[:300] if lines else 'no message'}"


_running: set[subprocess.Popen[bytes]] = set()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """The child and whatever it started: torch.compile has workers."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def end_children_on_signal() -> None:
    """A part that is told to stop takes its programs along."""
    def stop(number: int, _: object) -> None:
        for child in list(_running):
            _stop(child)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def run(command: list[object], seconds: float) -> Done:
    start = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, start_new_session=True)
        except OSError as error:
            return Done(127, "", str(error), 0.0)
        _running.add(child)
        try:
            code: int | None = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(child)
            _running.discard(child)
        out.seek(0)
        err.seek(0)
        return Done(code, out.read().decode(errors="replace"), err.read().decode(errors="replace"),
                    time.monotonic() - start)


def run_degu(report: Report, what: str, command: list[object], seconds: float) -> dict[str, Any] | None:
    """The JSON object that degu prints, or None and a failure in the report."""
    done = run(command, seconds)
    if done.ok:
        try:
            found: dict[str, Any] = json.loads(done.out)
            return found
        except json.JSONDecodeError:
            done = Done(1, "", "its output is no JSON object", done.seconds)
    give_up(report, f"degu, {what}", done)
    return None


def give_up(report: Report, what: str, done: Done) -> None:
    """A program of degu's that did not come to a good end: a failure, or no time."""
    (report.cut_short if done.code is None else report.fail)(f"{what}: {done.reason()}")


def run_peer(report: Report, script: str, arguments: list[object], seconds: float) -> list[dict[str, Any]]:
    """The JSON objects that a peer printed, a line for each, up to where it ended. Those with "left_out" go to the
    report; so does a peer that ends early."""
    done = run([sys.executable, HERE / script, *arguments, "--seconds", int(seconds)], seconds)
    rows = []
    for line in done.out.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict):
            continue
        if "left_out" in row:
            report.leave_out(row["left_out"])
        else:
            rows.append(row)
    if not done.ok:
        report.cut_short(f"the rest of the peer's {arguments[0]}: {done.reason()}")
    return rows


class DeviceMemory:
    """What nvidia-smi says of the first GPU's memory while a block runs: the most that came on top of what was in use
    before. `taken` is None where nvidia-smi does not say."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self.child: subprocess.Popen[str] | None = None

    def __enter__(self) -> DeviceMemory:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0", "-lms", "250"]
        ready = threading.Event()
        try:
            self.child = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return self

        def read() -> None:
            assert self.child is not None and self.child.stdout is not None
            for line in self.child.stdout:
                try:
                    self.samples.append(float(line) * 2**20)
                except ValueError:
                    break
                ready.set()
            ready.set()

        threading.Thread(target=read, daemon=True).start()
        ready.wait(timeout=10)  # the first is what was in use before
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()

    @property
    def taken(self) -> float | None:
        return max(self.samples) - self.samples[0] if len(self.samples) > 1 else None


def dense_rate(report: Report, rows: list[dict[str, Any]]) -> float | None:
    """FLOP/s of one large bf16 product by the vendor's library, by the rows of a peer that measured it."""
    dense = [row for row in rows if row["name"] == "dense"]
    report.detail(dense=dense)
    return statistics.mean(row["rate"] for row in dense) if dense else None


Part = Callable[[Any, Report, Clock], None]
