"""What CONTRIBUTING.md promises of the tests themselves, without an exception."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
USERS = [*TESTS, *(file for room in ("bench", "examples", "jobs") for file in sorted((ROOT / room).rglob("*.py")))]
ASSERTING = ("raises", "warns", "fail", "check_env")
"""Functions of pytest and Gymnasium that assert; so do those whose names begin with "assert_" (NumPy, pandas)."""
BY_NAME = ("getattr", "setattr", "hasattr", "delattr", "patch", "object")
"""Functions of Python, pytest and unittest.mock that take the name of an attribute, or a dotted path to it."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not name.startswith("__")


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


@cache
def private_names() -> set[str]:
    """Private functions, classes, variables and attributes of `self` that our packages define."""
    names = set()
    for file in (file for room in ("tap_ray", "envs", "jobs") for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Attribute(attr=name, ctx=ast.Store()) if is_own(node):
                    names.add(name)
    return {name for name in names if is_private(name)}


def private_uses(tree: ast.AST) -> Iterator[str]:
    """Private names of our packages that a file imports, or reaches through another object than `self`."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in ("tap_ray", "envs", "jobs"):
                yield from (f"{module}.{name.name}" for name in node.names if is_private(name.name))
            case ast.Attribute(attr=name) if name in private_names() and not is_own(node):
                yield ast.unparse(node)
            case ast.Call(func=function, args=arguments) if called(function) in BY_NAME:
                names = [each.value for each in arguments[:2] if isinstance(each, ast.Constant)]
                if any(str(name).rpartition(".")[2] in private_names() for name in names):
                    yield ast.unparse(node)


def called(function: ast.expr) -> str:
    """The last name of what is called: `setattr` of `monkeypatch.setattr`."""
    match function:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


@cache
def helpers() -> dict[str, list[ast.AST]]:
    """Functions and classes of the tests by name."""
    found: dict[str, list[ast.AST]] = {}
    for file in TESTS:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def asserts(function: ast.AST, *, in_helpers: bool = True) -> bool:
    """Whether a function asserts something, itself or in a helper that it calls."""
    nodes = list(ast.walk(function))
    names = {called(node.func) for node in nodes if isinstance(node, ast.Call)}
    return (
        any(isinstance(node, ast.Assert) for node in nodes)
        or any(name in ASSERTING or name.startswith("assert_") for name in names)
        or (in_helpers and any(helper_asserts(name) for name in names))
    )


@cache
def helper_asserts(name: str) -> bool:
    """Whether a function or class of the tests asserts something itself."""
    return any(asserts(one, in_helpers=False) for one in helpers().get(name, ()))


def test_no_private_name_of_our_packages_is_used_outside() -> None:
    uses = {named(file): list(private_uses(ast.parse(file.read_text()))) for file in USERS}
    assert {file: names for file, names in uses.items() if names} == {}


def test_every_test_asserts_something() -> None:
    silent: dict[str, list[str]] = {}
    for file in (file for file in TESTS if file.name.startswith("test_")):
        functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
        silent[named(file)] = [one.name for one in functions if one.name.startswith("test_") and not asserts(one)]
    assert {file: names for file, names in silent.items() if names} == {}


def test_uses_of_private_names_are_found() -> None:
    wrong = ["lock._renewed", "patch('tap_ray.locks._Lease')", "patch.setattr(lock, '_renewed', 1)"]
    fine = ["self._renewed", "os._exit(1)", "lock.renewed"]
    code = "\n".join(["from tap_ray.locks import _Lease", *wrong, *fine])
    assert sorted(private_uses(ast.parse(code))) == [*wrong, "tap_ray.locks._Lease"]


@pytest.mark.parametrize(
    ("body", "found"), [("f()", False), ("assert f()", True), ("is_private('_')", False), ("pytest.fail()", True)]
)
def test_what_counts_as_an_assertion(body: str, found: bool) -> None:
    assert asserts(ast.parse(f"def test_it():\n    {body}")) is found
