"""Decides which failures of a training worker end the job. Ray Train's controller imports this file, so it imports
little."""

from pathlib import Path
from typing import Any, Mapping

from ray.exceptions import RayActorError
from ray.train import FailureConfig, UserCallback

from tap_ray.distributed.ray_internals.train import (
    DefaultFailurePolicy,
    FailureDecision,
    TrainController,
    WorkerGroup,
    WorkerGroupError,
    WorkerGroupStartupFailedError,
)
from tap_ray.errors import TapRayError


class StopOnUserError(UserCallback):
    """Ends the job at once on a user's mistake (wrong data, full disk, NaN), which would recur in every new worker."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        for error in worker_exceptions.values():
            cause = user_error(error)
            if cause is not None:
                raise cause


class FailuresInARow(DefaultFailurePolicy):
    """Counts failures without a new checkpoint in between: a long training has many failures, and each costs little."""

    def __init__(self, config: FailureConfig, checkpoints: Path) -> None:
        """`checkpoints` is the run's folder of checkpoints."""
        super().__init__(config)
        self._checkpoints = checkpoints
        self._newest = self._now()

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Decide whether to retry or to end; Ray Train calls this after each failure."""
        newest = self._now()
        if newest > self._newest:
            self._worker_group_failures = 0
            self._newest = newest
        cause = getattr(training_failed_error, "controller_failure", None)
        if isinstance(cause, WorkerGroupStartupFailedError):  # Ray Train would start workers forever
            training_failed_error = WorkerGroupError(str(cause), {0: _reason(cause)})
        return super().make_decision(training_failed_error)

    def _now(self) -> str:
        return max((str(file) for file in self._checkpoints.glob("step-*/state.json")), default="")


class _Workers(WorkerGroup):
    """Ray Train's worker group, which by itself keeps its reservation and ends the job if a worker dies while it
    receives its function."""

    def _start(self) -> None:
        try:
            super()._start()
        except RayActorError as error:
            if self.has_started():
                self.shutdown()
            raise WorkerGroupStartupFailedError("A training process died while it started.") from error


class Controller(TrainController):
    """Ray Train's controller, with a worker group in which all deaths count alike."""

    worker_group_cls = _Workers


def _reason(error: Exception) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def user_error(error: BaseException | None) -> TapRayError | None:
    """The TapRayError inside the exceptions that Ray wraps around an error of a worker or a data task."""
    while error is not None and not isinstance(error, TapRayError):
        error = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error.__cause__
    return error
