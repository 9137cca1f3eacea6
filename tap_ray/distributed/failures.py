"""Which failures of a training worker end the job. Ray Train's controller imports this file, so it imports little."""

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
    """A user's mistake (wrong data, full disk, NaN) comes again however often workers are replaced: end at once."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        for error in worker_exceptions.values():
            cause = user_error(error)
            if cause is not None:
                raise cause


class FailuresInARow(DefaultFailurePolicy):
    """Counts failures without a new checkpoint in between: a long training meets many, and each costs it little."""

    def __init__(self, config: FailureConfig, checkpoints: Path) -> None:
        """`checkpoints`: the folder of the run's."""
        super().__init__(config)
        self._checkpoints = checkpoints
        self._newest = self._now()

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Ray Train asks after each failure."""
        newest = self._now()
        if newest > self._newest:
            self._worker_group_failures = 0
            self._newest = newest
        cause = getattr(training_failed_error, "controller_failure", None)
        if isinstance(cause, WorkerGroupStartupFailedError):  # Ray Train would start workers for ever
            training_failed_error = WorkerGroupError(str(cause), {0: _reason(cause)})
        return super().make_decision(training_failed_error)

    def _now(self) -> str:
        return max((str(file) for file in self._checkpoints.glob("step-*/state.json")), default="")


class _Workers(WorkerGroup):
    """Ray Train's own leaves its reservation behind, and ends the job, where a worker dies as it gets its function."""

    def _start(self) -> None:
        try:
            super()._start()
        except RayActorError as error:
            if self.has_started():
                self.shutdown()
            raise WorkerGroupStartupFailedError("A training process died while it started.") from error


class Controller(TrainController):
    """Ray Train's, with workers whose deaths all count alike."""

    worker_group_cls = _Workers


def _reason(error: Exception) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def user_error(error: BaseException | None) -> TapRayError | None:
    """The TapRayError inside the wrappings that Ray puts around an exception of a worker or of a data task."""
    while error is not None and not isinstance(error, TapRayError):
        error = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error.__cause__
    return error
