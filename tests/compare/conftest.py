from pathlib import Path

import pytest

from tests.compare.evaluated_runs import TASKS, make_result


@pytest.fixture
def two(tmp_path) -> list[Path]:
    """Spoon: first eeep, second ep..; pumpkin: first e..., second eeee."""
    return [
        make_result(tmp_path / "tap", {TASKS[0]: "eeep", TASKS[1]: "e..."}),
        make_result(tmp_path / "scratch", {TASKS[0]: "ep..", TASKS[1]: "eeee"}),
    ]
