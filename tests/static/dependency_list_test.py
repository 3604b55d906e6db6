"""third_party/debian.txt and the table in third_party/README.md name the same packages; Dependencies.cmake agrees."""

import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "third_party"


def main() -> int:
    lines = (FOLDER / "debian.txt").read_text(encoding="utf-8").splitlines()
    listed = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    described = {name for name, _ in rows}
    problems = [f"debian.txt only: {name}" for name in sorted(listed - described)]
    problems += [f"README.md only: {name}" for name in sorted(described - listed)]
    for name, cells in rows:
        if len([cell for cell in cells.split(" | ") if cell.strip()]) != 3:
            problems.append(f"{name}: needs version, licence and reason")
    licences = {name: cells.split(" | ")[1] for name, cells in rows if cells.count(" | ") == 2}
    # Of each degu_dependency() the licence and the package.
    found = re.findall(r"^degu_dependency\([^)]*?LICENCE (\S+) DEBIAN (\S+)",
                       (FOLDER / "Dependencies.cmake").read_text(encoding="utf-8"), re.MULTILINE)
    problems += [f"Dependencies.cmake: {package} has licence {licence}, README.md says {licences.get(package)}"
                 for licence, package in found if licences.get(package) != licence]
    if not found:
        problems.append("Dependencies.cmake: no dependency was read")
    for problem in problems:
        print(problem)
    print(f"{len(listed)} packages, {len(problems)} problems")
    return 1 if problems or not listed else 0


if __name__ == "__main__":
    sys.exit(main())
