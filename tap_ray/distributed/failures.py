"""Which failures of a training worker end the job. Light to import: Ray Train's controller needs it."""

from pathlib import Path
from typing import Any, Mapping

from ray.train import FailureConfig, UserCallback

from tap_ray.distributed.ray_internals import train_failure_policy
from tap_ray.errors import TapRayError

DefaultFailurePolicy, FailureDecision = train_failure_policy()


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

    def make_decision(self, training_failed_error: Any) -> Any:
        """Ray Train asks after each failure."""
        newest = self._now()
        if newest > self._newest:
            self._worker_group_failures = 0
            self._newest = newest
        return super().make_decision(training_failed_error)

    def _now(self) -> str:
        return max((str(file) for file in self._checkpoints.glob("step-*/state.json")), default="")


def user_error(error: BaseException | None) -> TapRayError | None:
    """The TapRayError inside the wrappings that Ray puts around an exception of a worker or of a data task."""
    while error is not None and not isinstance(error, TapRayError):
        error = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error.__cause__
    return error
