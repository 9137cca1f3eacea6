"""A robot that plays the made-up trajectories of tests/dataset/conftest.py."""

import importlib.util
from pathlib import Path
from typing import Any, Sequence

from tap_ray.play.collect import AttemptResult
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, RobotSpec
from tap_ray.types import Episode

SPEC = RobotSpec(robot="widowx", action=EE_DELTA_ACTION, state=EE_POSE_STATE)
MADE_UP = str(Path(__file__).parent.parent / "dataset" / "conftest.py")


def robots() -> Any:
    """tests/dataset/conftest.py as a module."""
    spec = importlib.util.spec_from_file_location("made_up_robots", MADE_UP)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def episode(index: int, steps: int | None) -> Episode:
    return robots().synthetic_episode(index, steps=steps)


class ToyPlayer:
    """Crashes in the attempts it is told to."""

    def __init__(self, steps: int, crashes: tuple[int, ...]) -> None:
        self.steps, self.crashes = steps, crashes

    def run(self, attempts: Sequence[int]) -> list[AttemptResult]:
        return [
            AttemptResult(attempt=attempt, episode=None, reason="crashed")
            if attempt in self.crashes
            else AttemptResult(attempt=attempt, episode=episode(attempt, self.steps))
            for attempt in attempts
        ]
