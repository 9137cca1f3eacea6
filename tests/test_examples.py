"""Every example runs as its first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.made_data import write_made_dataset

ROOT = Path(__file__).parents[1]
EXAMPLES = {"play.py", "own_policy.py", "train_without_ray.py", "read_with_lerobot.py", "ppo_push.py"}
"""read_with_lerobot.py: tests/dataset/test_lerobot.py."""


def run(*command: str | Path) -> str:
    ended = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_none_is_left_out():
    assert {file.name for file in (ROOT / "examples").glob("*.py")} == EXAMPLES


def test_play(tmp_path: Path):
    output = run("examples/play.py", tmp_path / "play.mp4")
    assert output.count(" of 60 steps") == 3
    assert (tmp_path / "play.mp4").stat().st_size > 5_000


def test_a_policy_of_ones_own():
    lines = run("examples/own_policy.py", "3").splitlines()[-2:]
    assert [line.split(":")[0] for line in lines] == ["put_carrot_on_plate", "put_spoon_on_cloth"]
    assert all("entire 0/3" in line for line in lines)  # it never moves sideways


@pytest.mark.long_proof
def test_ppo_plays_and_learns():
    first = run("examples/ppo_push.py", "1").splitlines()[0]
    assert " steps  reward 0." in first
    assert " m  success 0." in first


def test_training_without_ray(tmp_path: Path):
    play, demos, made = tmp_path / "play", tmp_path / "demos", tmp_path / "run"
    write_made_dataset(play, num_episodes=20, tasks=("",), crops=True)
    write_made_dataset(demos, num_episodes=20, tasks=("go left", "go right"))
    output = run("examples/train_without_ray.py", play, demos, made, "10")
    assert "loaded: vision, join, keypoints, glimpse, context_in" in output
    assert output.splitlines()[-1] == str(made / "tap" / "final")
