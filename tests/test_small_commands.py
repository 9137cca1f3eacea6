"""Commands beside the jobs: each explains itself, and says in one line what is wrong."""

import subprocess
import sys

import pytest

COMMANDS = ("envs.foreign.show", "envs.scenario_sheet", "tap_ray.sweep.study_page", "tap_ray.dataset.lerobot")
WRONG = [
    ("envs.foreign.show", ["nowhere:Nothing-v0"], "nowhere"),
    ("envs.scenario_sheet", ["sheet"], "must be a .png or .jpg file; got sheet"),
    ("envs.scenario_sheet", ["sheet.png", "pibullet"], "pibullet"),
    ("tap_ray.sweep.study_page", ["none.json"], "none.json is missing"),
    ("tap_ray.dataset.lerobot", ["verify", "none"], "There is no dataset at none"),
]


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", COMMANDS)
def test_it_explains_itself(module: str) -> None:
    done = run(module, "--help")
    assert done.returncode == 0
    assert f"usage: python -m {module}" in done.stdout


@pytest.mark.parametrize(("module", "arguments", "text"), WRONG)
def test_what_is_wrong_is_said_in_a_line(module: str, arguments: list[str], text: str) -> None:
    done = run(module, *arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
