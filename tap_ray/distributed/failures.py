"""Which failures of a training worker end the job at once. Light to import: Ray Train's controller needs it."""

from typing import Any, Mapping

from ray.train import UserCallback

from tap_ray.errors import TapRayError


class StopOnUserError(UserCallback):
    """A user's mistake (wrong data, full disk, NaN) comes again however often workers are replaced: end at once."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        for error in worker_exceptions.values():
            cause = user_error(error)
            if cause is not None:
                raise cause


def user_error(error: BaseException | None) -> TapRayError | None:
    """The TapRayError inside the wrappings that Ray puts around an exception of a worker or of a data task."""
    while error is not None and not isinstance(error, TapRayError):
        error = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error.__cause__
    return error
