#!/usr/bin/env python3
"""clang-tidy over our sources, in parallel, skipping what was already found clean.

A file's verdict depends on the tool, .clang-tidy, its compile command, its own text and that of every
header of ours it includes (which Ninja knows). The hash of all that is kept for clean files, so a second
run costs seconds. With --budget-minutes the run stops there and says how many files it did not reach.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# GCC's flags that clang does not know are not our sources' fault.
EXTRA = ["-Wno-unknown-warning-option", "-Wno-ignored-optimization-argument", "-Wno-error"]


def ninja_deps(build: pathlib.Path) -> dict[str, list[str]]:
    """Object file -> headers of the repository, from Ninja's log."""
    text = subprocess.run(["ninja", "-C", str(build), "-t", "deps"], capture_output=True, text=True,
                          check=True).stdout
    deps: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace():
            current = deps.setdefault(line.split(":")[0], [])
        elif line.strip():
            path = pathlib.Path(os.path.normpath(build / line.strip()))
            if path.is_relative_to(ROOT) and not path.is_relative_to(build):
                current.append(str(path))
    return deps


def cache_key(version: str, entry: dict[str, str], headers: list[str]) -> str:
    digest = hashlib.sha256(version.encode())
    for config in sorted(ROOT.glob(".clang-tidy")) + sorted(ROOT.glob("tests/.clang-tidy")):
        digest.update(config.read_bytes())
    digest.update(entry["command"].replace(str(ROOT), ".").encode())
    for path in [entry["file"], *sorted(headers)]:
        digest.update(os.path.relpath(path, ROOT).encode())
        digest.update(pathlib.Path(path).read_bytes())
    return digest.hexdigest()


def without_precompiled(command: str) -> str:
    """The command as if nothing were precompiled: clang does not read GCC's precompiled headers."""
    return re.sub(r" -Winvalid-pch -include \S+/cmake_pch\.hxx", "", command)


def tidy(database: pathlib.Path, file: str) -> tuple[int, str]:
    command = ["clang-tidy", "--quiet", "-p", str(database), *(f"--extra-arg={flag}" for flag in EXTRA), file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + (result.stderr if result.returncode else "")


def changed_since(reference: str) -> set[str]:
    names = subprocess.run(["git", "-C", str(ROOT), "diff", "--name-only", reference], capture_output=True,
                           text=True, check=True).stdout.split()
    return {str(ROOT / name) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget-minutes", type=float, default=0, help="0: no limit")
    parser.add_argument("--changed", metavar="REF", help="only files that differ from this commit")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    start = time.monotonic()

    version = subprocess.run(["clang-tidy", "--version"], capture_output=True, text=True, check=True).stdout
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "degu" / "tidy"
    cache.mkdir(parents=True, exist_ok=True)
    deps = ninja_deps(build)
    entries: dict[str, dict[str, str]] = {}
    for entry in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        path = pathlib.Path(entry["file"])
        entry["command"] = without_precompiled(entry["command"])
        # Kernels are compiled once per instruction set: one verdict is enough, the portable one comes first.
        if path.is_relative_to(ROOT) and not path.is_relative_to(build) and path.suffix == ".cc":
            entries.setdefault(entry["file"], entry)
    database = build / "tidy"
    database.mkdir(exist_ok=True)
    (database / "compile_commands.json").write_text(json.dumps(list(entries.values())), encoding="utf-8")
    if arguments.changed:
        wanted = changed_since(arguments.changed)
        entries = {file: entry for file, entry in entries.items() if file in wanted}

    todo: list[tuple[str, pathlib.Path]] = []
    for file, entry in entries.items():
        words = shlex.split(entry["command"])
        target = words[words.index("-o") + 1]
        stamp = cache / cache_key(version, entry, deps.get(target, []))
        if not stamp.exists():
            todo.append((file, stamp))
    print(f"tidy: {len(entries)} files, {len(entries) - len(todo)} known to be clean", flush=True)

    failures = skipped = 0

    def work(item: tuple[str, pathlib.Path]) -> tuple[str, pathlib.Path, int | None, str]:
        file, stamp = item
        if arguments.budget_minutes and time.monotonic() - start > 60 * arguments.budget_minutes:
            return file, stamp, None, ""
        return file, stamp, *tidy(database, file)

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for file, stamp, code, output in pool.map(work, todo):
            if code is None:
                skipped += 1
            elif code == 0:
                stamp.touch()
            else:
                failures += 1
                print(f"{os.path.relpath(file, ROOT)}:\n{output}", flush=True)
    if skipped:
        print(f"tidy: {skipped} files not reached within {arguments.budget_minutes:g} minutes")
    print(f"tidy: {len(todo) - skipped} files checked, {failures} with findings")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
