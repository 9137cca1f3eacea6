"""Which failures of training workers add up, without Ray running."""

from pathlib import Path

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from tap_ray.distributed.failures import FailuresInARow

LOST = WorkerGroupError("lost", {0: RuntimeError("its process died")})
"""A worker's death."""


def checkpoint(folder: Path, step: int) -> None:
    made = folder / f"step-{step:08d}"
    made.mkdir(parents=True)
    (made / "state.json").write_text("{}")


def test_only_failures_without_a_checkpoint_in_between_add_up(tmp_path: Path):
    """`max_failures` 1: the second in a row ends the job; one that a checkpoint came before is the first again."""
    checkpoint(tmp_path, 5)
    policy = FailuresInARow(FailureConfig(max_failures=1), tmp_path)
    for step in (10, 15, 20):
        assert policy.make_decision(LOST) is FailureDecision.RETRY
        checkpoint(tmp_path, step)
    assert policy.make_decision(LOST) is FailureDecision.RETRY
    assert policy.make_decision(LOST) is FailureDecision.RAISE


@pytest.mark.parametrize("left", ["", "step-00000005"])
def test_half_a_checkpoint_is_none(tmp_path: Path, left: str):
    """A folder that was truncated has no state.json."""
    policy = FailuresInARow(FailureConfig(max_failures=1), tmp_path)
    assert policy.make_decision(LOST) is FailureDecision.RETRY
    (tmp_path / left).mkdir(exist_ok=True)
    assert policy.make_decision(LOST) is FailureDecision.RAISE


def test_deaths_while_workers_start_add_up_too(tmp_path: Path):
    policy = FailuresInARow(FailureConfig(max_failures=1), tmp_path)
    starting = ControllerError(WorkerGroupStartupFailedError("died"))
    assert policy.make_decision(starting) is FailureDecision.RETRY
    assert policy.make_decision(starting) is FailureDecision.RAISE
