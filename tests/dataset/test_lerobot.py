"""lerobot's own class opens our datasets. It wants another torch than we do, so an environment of its own."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON = os.environ.get("LEROBOT_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None,
    reason="no lerobot: python3 -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install lerobot==0.4.4, "
    "then LEROBOT_PYTHON=/tmp/lerobot/bin/python",
)


def run(script: str, *arguments: object) -> str:
    assert PYTHON is not None
    command = [PYTHON, REPOSITORY / script, *map(str, arguments)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_every_column_and_statistic_is_ours(play_dataset: Path) -> None:
    assert run("tests/dataset/lerobot_compat.py", play_dataset).splitlines()[-1] == "lerobot_compat: ok"


def test_the_example(play_dataset: Path) -> None:
    output = run("examples/read_with_lerobot.py", play_dataset)
    assert output.splitlines()[0].endswith(" episodes, 100 frames at 5 Hz")
    assert "(4, 7)" in next(line for line in output.splitlines() if line.startswith("action "))
