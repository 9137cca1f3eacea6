"""Private parts of Ray Train."""

# Switches a warning off in our controller, as Ray Train does in its own. Instead: see TrainController.
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR

# What Ray Train starts beside each training, and we leave out. Instead: options of RunConfig.
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

# Environment of our controller, as Ray Train sets it for its own. Instead: see TrainController.
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)

# A worker that dies as it gets its function counts like any other. Instead: a fix in Ray Train's controller.
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

# The notice that a machine will be preempted. Instead: `ray.train.get_preemption_info`, once it does not wait for
# all workers.
from ray.train.v2._internal.execution.context import get_train_context

# As for WorkerGroupStartupFailedError; also so that Ctrl-C stays the job's. Instead: a controller class in RunConfig.
from ray.train.v2._internal.execution.controller import TrainController

# Counts failures since the newest checkpoint. Instead: an option of FailureConfig.
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

# As for WorkerGroupStartupFailedError.
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.exceptions import WorkerGroupError

__all__ = (
    "DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR",
    "DatasetsCallback",
    "DefaultFailurePolicy",
    "FailureDecision",
    "PlacementGroupCleanerCallback",
    "TrainController",
    "WorkerGroup",
    "WorkerGroupError",
    "WorkerGroupStartupFailedError",
    "get_env_vars_to_propagate",
    "get_train_context",
)
