"""Every Python script parses, opens with a docstring and is executable or importable without side effects."""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def problems_of(path: pathlib.Path) -> list[str]:
    name = path.relative_to(ROOT)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(name))
    except SyntaxError as error:
        return [f"{name}:{error.lineno}: {error.msg}"]
    problems = [] if ast.get_docstring(tree) else [f"{name}:1: no docstring that says what it is for"]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.returns is None:
            problems.append(f"{name}:{node.lineno}: {node.name} has no return type")
    return problems


def main() -> int:
    files = [path for folder in ("scripts", "tests", "experiments")
             for path in sorted((ROOT / folder).rglob("*.py"))]
    problems = [problem for path in files for problem in problems_of(path)]
    for problem in problems:
        print(problem)
    print(f"{len(files)} scripts, {len(problems)} problems")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main())
