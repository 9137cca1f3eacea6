"""What the front page says is so: its example is one that runs, and its table is that of the study."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_its_example_is_examples_play():
    """tests/test_examples.py runs that."""
    _, _, code = (ROOT / "examples" / "play.py").read_text().removeprefix('"""').partition('"""\n\n')
    (shown,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert shown == code
    assert sum(bool(line) for line in code.splitlines()) <= 20


def test_its_table_is_that_of_the_studies():
    study, visual = (
        json.loads((ROOT / f"docs/results/{name}.json").read_text()) for name in ("play_pays", "visual_play")
    )
    points = {point["axes"]["arm"]: point for one in (visual, study) for point in one["points"]["standard"]}
    rows = [
        points["scratch"],
        *(points["next_object"], study["against_scratch"]["standard"][0]),
        *(points["visual"], visual["against_scratch"]["standard"][0]),
    ]
    shown = [
        [float(number) for number in re.findall(r"[+-]?\d+\.\d", line)]
        for line in README.splitlines()
        if line.startswith("|") and line.count("[") == 2
    ]
    expected = [
        [round(100 * row[score][key], 1) for score in ("avg_partial", "avg_entire") for key in ("rate", "low", "high")]
        for row in rows
    ]
    assert shown == expected
    assert {len(points[arm]["seeds"]) for arm in ("scratch", "next_object", "visual")} == {3}
    assert {points[arm]["n"] for arm in ("scratch", "next_object", "visual")} == {300}


def test_the_site_keeps_hand_aligned_docstrings():
    """A hand-aligned block becomes a code block of its own; the parameters below Args: stay what they are."""
    code = (ROOT / "docs" / "docstring_blocks.py").read_text()
    scope: dict = {}
    exec(compile(code, "docstring_blocks.py", "exec"), scope)
    text = "Slots:\n    dx  m\n    dy  m\nMore.\n\nArgs:\n    x: a number.\n        Long.\n"
    expected = "Slots:\n\n    dx  m\n    dy  m\n\nMore.\n\nArgs:\n    x: a number.\n        Long."
    assert scope["blocks"](text) == expected


def test_the_tutorials_policy_is_that_of_an_example():
    """tests/test_examples.py runs it."""
    (shown,) = re.findall(
        r"```python\n.*?(class .*?)```", (ROOT / "docs/tutorial/5_own_policy.md").read_text(), re.DOTALL
    )
    assert shown in (ROOT / "examples" / "own_policy.py").read_text()


def test_the_tutorials_mapping_is_that_of_an_example():
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/tutorial/6_own_robot.md").read_text(), re.DOTALL)
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "tap_ray/importing/mappings/so100.yaml").read_text())
