"""Every command, flag and make target that a message or a document names exists, and a command has the flags named."""

import ast
import importlib.util
import re
import warnings
from functools import cache
from pathlib import Path

import pytest
import tyro

from tap_ray.command_line import BESIDE, FLAGS
from tests import job_configs

ROOT = Path(__file__).parents[1]
CONFIGS = {f"jobs.{name}": type(one) for name, one in job_configs.CONFIGS.items()}
"""Job -> its config."""
ELSEWHERE = {
    "curl": {"--cacert", "--noproxy"},
    "docker": {"--shm-size"},
    "git": {"--porcelain"},
    "pip": {"--force-reinstall"},
    "ps": {"--sort"},
    "ray": {"--head", "--labels", "--object-store-memory", "--generate"},
    "tensorboard": {"--logdir"},
    "mlflow": {"--host", "--port"},
    "mani_skill": {"--obs-mode", "--save-traj", "--traj-path"},
    "nvidia-smi": {"--driver"},
    "ours beside the jobs": {"--repair", "--probe", "--mixed", "--help", *BESIDE},
}
"""Flags of other programs, and of our tools that take theirs by argparse or by hand."""
OTHERS = ("lerobot.", "mani_skill.", "pip", "venv", "http.server", "pytest")
"""Modules that messages and documents run and that are not ours."""
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/how-to/*.md", "docs/tutorial/*.md", "clusters/*.md")
NO_FLAGS = ("tap_ray/compare/page.py", "tap_ray/compare/plots.py", "tap_ray/inspect/dataset/page.py")
"""Files whose `--words` are variables of a style sheet."""


@cache
def flags_of(job: str) -> set[str]:
    """Flags that a job takes, long ones."""
    with warnings.catch_warnings(), FLAGS:
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(CONFIGS[job])
    return {flag for action in parser._actions for flag in action.option_strings}


@cache
def messages() -> list[tuple[str, str]]:
    """(file:line, text) of every string of the sources, f-strings with {} for what is filled in."""
    found = []
    for folder in ("tap_ray", "jobs", "envs"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text())
            parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in ast.walk(n) if v is not n}
            for node in ast.walk(tree):
                where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.JoinedStr):
                    values = [str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values]
                    found.append((where, "".join(values)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                    found.append((where, node.value))
    return found


@cache
def documents() -> list[tuple[str, str]]:
    """(file:line, line) of the documents, continued lines joined; not of the one that lists wrong commands."""
    files = [file for pattern in DOCUMENTS for file in sorted(ROOT.glob(pattern)) if file.name != "bad_input.md"]
    return [
        (f"{file.relative_to(ROOT)}:{number}", line)
        for file in files
        for number, line in enumerate(file.read_text().replace("\\\n", " ").splitlines(), 1)
    ]


def named_flags(text: str) -> set[str]:
    return {flag.rstrip(".-") for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", text)}


def exists(flag: str, flags: set[str]) -> bool:
    """Whether it is one of them, or what several begin with (`--align.weights.*`)."""
    return flag in flags or any(one.startswith(f"{flag}.") for one in flags)


def test_every_module_that_is_to_be_run_exists():
    missing = []
    for where, text in messages() + documents():
        for module in re.findall(r"python3? -m ([a-z_][\w.]*)", text):
            module = module.rstrip(".")
            if not module.startswith(OTHERS) and module != "jobs" and importlib.util.find_spec(module) is None:
                missing.append(f"{where}: {module}")
    assert not missing


def test_every_flag_that_a_message_names_exists():
    everything = {flag for job in CONFIGS for flag in flags_of(job)} | set().union(*ELSEWHERE.values())
    missing = [
        f"{where}: {flag}"
        for where, text in messages()
        if not where.startswith(NO_FLAGS) and "-->" not in text
        for flag in sorted(named_flags(text))
        if not exists(flag, everything)
    ]
    assert not missing


@pytest.mark.parametrize("texts", [messages, documents])
def test_a_command_has_the_flags_it_is_shown_with(texts):
    wrong, seen = [], 0
    for where, text in texts():
        for job, rest in re.findall(r"python3? -m (jobs\.\w+)([^`;&|#()\n]*)", text):
            seen += 1
            unknown = [flag for flag in named_flags(rest) if flag not in BESIDE and not exists(flag, flags_of(job))]
            wrong += [f"{where}: {job} {flag}" for flag in unknown]
    assert seen > 3
    assert not wrong


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = [(w, t) for w, text in messages() + documents() for t in re.findall(r"`make ([a-z][a-z-]*)", text)]
    assert named
    assert not [f"{where}: make {target}" for where, target in named if target not in targets]
