"""What CONTRIBUTING.md promises of sizes and imports, without an exception."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests import job_configs

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


def test_files_up_to_400_lines_and_functions_up_to_60() -> None:
    sizes: dict[str, int] = {}
    for file in FILES:
        text = file.read_text()
        functions = [
            one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        sizes |= {f"{file}: {one.name}": length(one) for one in functions if length(one) > 60}
        sizes |= {str(file): lines for lines in [len(text.splitlines())] if lines > 400}
    assert sizes == {}


def test_the_settings_of_every_job_are_in_a_file_called_settings() -> None:
    """That is what the README and docs/reference/index.md say."""
    assert {type(config).__module__.rpartition(".")[2] for config in job_configs.CONFIGS.values()} == {"settings"}


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.py")), ids=lambda file: file.name)
def test_a_job_has_up_to_60_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 60


def test_a_function_is_measured_without_its_docstring() -> None:
    [function] = ast.parse('def f(\n    a,\n):\n    """One.\n\n    Two."""\n    return a\n').body
    assert isinstance(function, ast.FunctionDef)
    assert length(function) == 4


PRIVATE_RAY = (
    "ray._private",
    "ray.core.generated",
    "ray.data._internal",
    "ray.train.v2",
    "ray._common",
    "ray.autoscaler",
)
RAY_INTERNALS = ROOT / "tap_ray" / "distributed" / "ray_internals"


def private_ray(file: Path) -> list[str]:
    """Private Ray modules that a file imports or reaches through `ray.`."""
    tree = ast.parse(file.read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [name for name in names if name.startswith(PRIVATE_RAY)]


def test_only_one_place_imports_private_ray_modules() -> None:
    found = [file for file in FILES if private_ray(file)]
    assert {file.parent for file in found} == {RAY_INTERNALS}


def test_ray_is_the_same_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [ray] = [each for each in project["dependencies"] if each.startswith("ray[")]
    assert ray == "ray[data,default,serve,train,tune]>=2.60,<2.61"
    files = [ROOT / "cluster.yaml", *(ROOT / "clusters").iterdir()]
    named = [re.findall(r"(?:ray==|ray:|rayVersion: |\]==)([\d.]+\d)", file.read_text()) for file in files]
    assert {version for versions in named for version in versions} == {"2.60.0"}
