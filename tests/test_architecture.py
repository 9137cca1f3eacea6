"""The sizes that CONTRIBUTING.md promises, without an exception."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file for room in ("tap_ray", "envs", "jobs", "examples", "bench") for file in (ROOT / room).rglob("*.py")
)


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return lines - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_up_to_400_lines_and_functions_up_to_60(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    functions = [one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {one.name: length(one) for one in functions if length(one) > 60} == {}


def test_a_function_is_measured_without_its_docstring() -> None:
    [function] = ast.parse('def f(\n    a,\n):\n    """One.\n\n    Two."""\n    return a\n').body
    assert isinstance(function, ast.FunctionDef)
    assert length(function) == 4
