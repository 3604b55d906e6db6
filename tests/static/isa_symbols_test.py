#!/usr/bin/env python3
"""Code compiled for one instruction set must not be reachable under a name that other objects share.

Usage: isa_symbols_test.py NM ARCHIVE SET…: in the archive's member degu_kernels_<SET>.o of each set, only the
tables of entry points may be global.
"""

import re
import subprocess
import sys

TABLE = re.compile(r"_ZN4degu3cpu5TableI\w+")
MEMBER = re.compile(r"^degu_kernels_(\w+)\.o:$")


def exported(nm: str, archive: str) -> dict[str, list[str]]:
    """Instruction set -> names its object defines for others."""
    text = subprocess.run([nm, "--extern-only", "--defined-only", "--format=posix", archive],
                          capture_output=True, text=True, check=True).stdout
    names: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if line.endswith(":"):
            member = MEMBER.match(line.split("[")[-1].replace("]", ""))
            current = names.setdefault(member.group(1), []) if member else None
        elif current is not None and line.strip():
            current.append(line.split()[0])
    return names


def main() -> int:
    nm, archive, *sets = sys.argv[1:]
    names = exported(nm, archive)
    failures = 0
    for isa in sets:
        shared = [name for name in names.get(isa, []) if not TABLE.fullmatch(name)]
        tables = len(names.get(isa, [])) - len(shared)
        if tables == 0:
            failures += 1
            print(f"{archive}: no tables of entry points for {isa}")
        for name in shared:
            failures += 1
            print(f"{archive}: the object of {isa} exports {name}")
    print(f"{len(sets)} instruction sets, {failures} findings")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
