"""Private parts of Ray Data."""

# Called after each step of Ray Data's executor, to throttle it. Instead: an option for its polling interval.
from ray.data._internal.execution.execution_callback import ExecutionCallback

__all__ = ("ExecutionCallback",)
