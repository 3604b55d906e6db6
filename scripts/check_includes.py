#!/usr/bin/env python3
"""Keeps the direction of the rooms: who may include whom, per docs/map.md.

Also: headers open with `#pragma once`, includes name a path from the roots (src/ and the repository) and
never climb with `..`, and no file grows past the length that stays readable.
"""

import argparse
import pathlib
import re
import sys

# Each room and what it uses directly; what those use is allowed too.
USES: dict[str, set[str]] = {
    "base": set(),
    "config": {"base"},
    "tensor": {"base"},
    "shape": {"config"},
    "kernels": {"tensor"},
    "comm": {"tensor", "kernels"},  # sums of what arrived on a GPU
    "io": {"tensor", "config", "comm"},  # a checkpoint is written by all ranks together
    "data": {"tensor", "config", "io"},
    # The sharded optimizer steps with a kernel and gathers with a communicator.
    "optim": {"tensor", "config", "kernels", "comm"},
    "nn": {"kernels", "shape", "comm", "io", "data", "optim"},
    "moe": {"nn"},
    "model": {"moe"},
    "train": {"model"},
    "compress": {"model"},
    "infer": {"model"},
    "scaling": {"config", "shape", "io"},
    "server": {"train", "compress", "infer"},
    "cli": {"train", "compress", "infer", "server", "scaling"},
}
# Inside kernels/: the interface knows no backend, and backends do not know each other.
KERNEL_PARTS: dict[str, set[str]] = {
    "formats": {"formats", "common"},
    "common": {"formats", "common"},
    "api": {"api", "formats", "common"},
    "tables": {"api", "formats", "common"},  # what every backend fills in
    "cpu": {"api", "formats", "common", "tables", "cpu"},
    "cuda": {"api", "formats", "common", "tables", "cuda"},
    "plan": {"plan"},
    "dispatch.h": {"cpu", "cuda", "plan"},  # where an operator picks its backend
}
MAX_LINES = 700
SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".inc"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def closure(room: str) -> set[str]:
    """The room itself and everything it may include."""
    seen: set[str] = set()
    todo = [room]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(USES[current])
    return seen


def room_of(path: pathlib.PurePath) -> str | None:
    """"tensor" for src/tensor/view.h, "kernels" for kernels/api/x.h, None elsewhere."""
    if path.parts[0] == "src" and len(path.parts) > 2:
        return path.parts[1]
    return "kernels" if path.parts[0] == "kernels" else None


def check_include(path: pathlib.PurePath, target: str) -> str | None:
    """What is wrong with `path` including "target", or None."""
    parts = target.split("/")
    if path.parts[0] == "tests" and len(parts) == 1:
        return None  # a helper in the same folder
    if ".." in parts or len(parts) == 1:
        return f'"{target}" must be a path from src/ or the repository'
    if path.parts[0] == "tests":
        return None  # tests see everything
    if parts[0] in {"tests", "experiments"}:
        return f'"{target}": nothing depends on {parts[0]}/'
    if parts[0] == "src":
        return f'"{target}": write "{"/".join(parts[1:])}"'
    room, other = room_of(path), parts[0]
    if other not in USES:
        return f'"{target}": no room named "{other}"; external headers take <>'
    if room not in USES:
        return f'room "{room}" is not in scripts/check_includes.py'
    if other not in closure(room):
        return f'"{target}": {room}/ must not use {other}/'
    if room == "kernels" and other == "kernels":
        mine, theirs = path.parts[1], parts[1]
        allowed = KERNEL_PARTS.get(mine)
        # The .cc of an operator's interface is where the call enters a backend.
        if mine == "api" and path.suffix == ".cc":
            allowed = set(KERNEL_PARTS)
        if allowed is None or theirs not in allowed:
            return f'"{target}": kernels/{mine}/ must not use kernels/{theirs}/'
    return None


def check_file(root: pathlib.Path, path: pathlib.PurePath) -> list[str]:
    text = (root / path).read_text(encoding="utf-8")
    lines = text.splitlines()
    problems = []
    for number, line in enumerate(lines, start=1):
        match = INCLUDE.match(line)
        if match and match.group(1) == '"':
            problem = check_include(path, match.group(2))
            if problem:
                problems.append(f"{path}:{number}: {problem}")
    if path.suffix in {".h", ".cuh"} and "#pragma once" not in lines:
        problems.append(f"{path}:1: no #pragma once")
    if len(lines) > MAX_LINES:
        problems.append(f"{path}:{len(lines)}: over {MAX_LINES} lines; split it")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    arguments = parser.parse_args()
    problems: list[str] = []
    count = 0
    for folder in ("src", "kernels", "tests"):
        for file in sorted((arguments.root / folder).rglob("*")):
            if file.suffix in SUFFIXES and file.is_file():
                count += 1
                problems += check_file(arguments.root, file.relative_to(arguments.root))
    for problem in problems:
        print(problem)
    print(f"includes: {count} files, {len(problems)} problems")
    return 1 if problems or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
