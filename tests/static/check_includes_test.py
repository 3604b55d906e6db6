"""The include checker refuses what it is there to refuse."""

import pathlib
import subprocess
import sys
import tempfile

CHECKER = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check_includes.py"

# (file, its text, a part of the line that the checker must print; None: the file is fine)
CASES = [
    ("src/base/up.h", '#pragma once\n#include "tensor/view.h"\n', "base/ must not use tensor/"),
    ("src/scaling/run.cc", '#include "model/transformer.h"\n', "scaling/ must not use model/"),
    ("src/nn/test.cc", '#include "tests/support/compare.h"\n', "nothing depends on tests/"),
    ("src/nn/climb.cc", '#include "../base/error.h"\n', "must be a path from src/"),
    ("src/nn/bare.cc", '#include "error.h"\n', "must be a path from src/"),
    ("src/nn/room.cc", '#include "fmt/format.h"\n', "external headers take <>"),
    ("src/nn/long_way.cc", '#include "src/base/error.h"\n', 'write "base/error.h"'),
    ("src/attic/old.cc", '#include "base/error.h"\n', "is not in scripts/check_includes.py"),
    ("src/base/no_guard.h", "int x();\n", "no #pragma once"),
    ("src/base/long.cc", "\n" * 701, "over 700 lines"),
    ("kernels/cpu/a.cc", '#include "kernels/cuda/a.h"\n', "kernels/cpu/ must not use kernels/cuda/"),
    ("kernels/api/a.h", '#pragma once\n#include "kernels/cpu/a.h"\n', "kernels/api/ must not use kernels/cpu/"),
    ("kernels/api/a.cc", '#include "kernels/cpu/a.h"\n', None),
    ("src/moe/layer.cc", '#include "nn/linear.h"\n#include <vector>\n', None),
    ("src/cli/fit.cc", '#include "scaling/laws/law.h"\n', None),
    ("tests/nn/linear_test.cc", '#include "cases.h"\n#include "cli/command.h"\n', None),
]


def run(root: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKER), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    failures = 0
    for name, text, expected in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / name
            path.parent.mkdir(parents=True)
            path.write_text(text, encoding="utf-8")
            result = run(pathlib.Path(folder))
            good = result.returncode == 0 if expected is None else (
                result.returncode == 1 and expected in result.stdout and name in result.stdout)
            if not good:
                failures += 1
                print(f"{name}: expected {expected!r}, got {result.returncode}: {result.stdout}{result.stderr}")
    with tempfile.TemporaryDirectory() as folder:
        if run(pathlib.Path(folder)).returncode != 1:
            failures += 1
            print("an empty tree must fail: nothing was checked")
    print(f"{len(CASES) + 1} cases, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
