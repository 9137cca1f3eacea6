"""A wrong mapping is found, by what it is; a right one is left in peace."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tap_ray.config import from_dict
from tap_ray.importing.checks import findings
from tap_ray.importing.lerobot import LeRobotSource
from tap_ray.importing.mapping import Mapping

DATA = Path(__file__).parent / "data"
RIGHT = yaml.safe_load(Path("tap_ray/importing/mappings/so100.yaml").read_text())


def found(change: Callable[[dict[str, Any]], object] = lambda values: None) -> list[str]:
    values = copy.deepcopy(RIGHT)
    change(values)
    return findings(from_dict(Mapping, values), LeRobotSource(DATA / "v30_image"), [0, 1, 2])


def test_a_correct_mapping_has_no_findings() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["action"][1].update(open=0, closed=100), "the gripper does the opposite of the action"),
        (lambda v: v["action"][0].update(unit="rad"), "the numbers reach 88.19. They seem to be degrees (unit: deg)"),
        (lambda v: v["state"][0].update(unit="rad"), "They seem to be degrees (unit: deg)"),
        (lambda v: v["action"][0].update(kind="delta"), "They seem to be absolute poses (kind: absolute)"),
        (
            lambda v: v.update(fps=10),
            "the mapping says 10 frames per second, but the time stamps are 0.03333 s apart",
        ),
        (lambda v: v["action"][0].update(scale=0.02), "the scale (0.02) of one of the two is wrong"),
        (lambda v: v["action"][0].update(scale=-1), "The sign is wrong"),
        (lambda v: v["action"][1].update(open=1), "the numbers are in 5 .. 95. Correct 'closed' and 'open'"),
    ],
)
def test_what_is_wrong_is_said(change: Callable[[dict[str, Any]], object], says: str) -> None:
    assert any(says in each for each in found(change)), found(change)


def test_without_an_opening_a_gripper_that_begins_closed_is_suspected() -> None:
    def inverted(values: dict[str, Any]) -> None:
        values["state"].pop()
        values["action"][1].update(open=0, closed=100)

    [finding] = found(inverted)
    assert "100% of the episodes begin with a closed gripper, so it may be inverted" in finding
    assert found(lambda values: values["state"].pop()) == []
