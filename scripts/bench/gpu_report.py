#!/usr/bin/env python3
"""One report of the parts that scripts/gpu_check.sh ran: report.md for people, report.json for programs.

  gpu_report.py FOLDER [--left-out TEXT]…

FOLDER holds version and gpus.txt, parts.tsv (a line for each part: name, exit status, seconds, seconds it could have
had), and of each part NAME.txt, what it printed, and perhaps NAME.json. A part's verdict:
  failed      it ended with an error, or its JSON has failures
  missed      it ended, and one of its bars is not met
  incomplete  nothing of that, but it was cut short, or a bar has no answer
  passed      it came to its end and every bar is met
Exit 1 when a part failed or missed, else 0.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from gpu_bars import table  # noqa: E402  (after the path is set)

CUT_SHORT = (124, 137)  # what `timeout` returns, the second when it had to kill
SHOWN_LINES = 200
WITH_BARS = ("grouped", "layer", "train", "decode")


def read_json(path: pathlib.Path) -> Any:
    """None where there is no file, or none that is whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def said(path: pathlib.Path) -> list[str]:
    """The last lines of what a part printed."""
    return path.read_text(errors="replace").splitlines()[-SHOWN_LINES:] if path.exists() else []


def verdict(name: str, status: int, result: Any) -> str:
    bars = result["bars"] if result else []
    if name in WITH_BARS and not bars:  # it did not come so far as to name them
        return "incomplete" if status in CUT_SHORT else "failed"
    if status not in (0, *CUT_SHORT) or (bars and result["failures"]):
        return "failed"
    if any(bar["met"] is False for bar in bars):
        return "missed"
    complete = status == 0 and (not bars or result["complete"])
    return "passed" if complete and all(bar["met"] for bar in bars) else "incomplete"


def read_parts(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    parts = {}
    for line in (folder / "parts.tsv").read_text().splitlines():
        name, status, seconds, limit = line.split("\t")
        result = read_json(folder / f"{name}.json")
        parts[name] = {"verdict": verdict(name, int(status), result), "exit": int(status), "seconds": int(seconds),
                       "limit_seconds": int(limit), "result": result, "said": said(folder / f"{name}.txt")}
    return parts


def section(name: str, part: dict[str, Any]) -> list[str]:
    lines = [f"## {name}: {part['verdict']}, {part['seconds']} s of {part['limit_seconds']}", ""]
    if part["result"]:
        lines += [table(part["result"]), ""]
        if part["exit"] in (0, *CUT_SHORT):
            return lines
    return [*lines, "```", *part["said"], "```", ""]


def summary(parts: dict[str, dict[str, Any]]) -> str:
    kinds = ("passed", "missed", "failed", "incomplete")
    by_kind = {kind: [name for name, part in parts.items() if part["verdict"] == kind] for kind in kinds}
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items() if names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--left-out", action="append", default=[], help="a part that did not run, and why")
    args = parser.parse_args()
    folder: pathlib.Path = args.folder
    parts = read_parts(folder)
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    version = (folder / "version").read_text().strip() or "unknown"
    gpu = (folder / "gpus.txt").read_text().split("\n", 1)[0].split(" (UUID")[0]
    lines = ["# GPU check", "", f"{date}, version {version}, {gpu}", "", summary(parts), ""]
    if args.left_out:
        lines += [f"Left out: {'; '.join(args.left_out)}", ""]
    for name, part in parts.items():
        lines += section(name, part)
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    report = {"version": version, "date": date, "gpu": gpu, "parts": parts, "left_out": args.left_out}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(part["verdict"] in ("failed", "missed") for part in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
