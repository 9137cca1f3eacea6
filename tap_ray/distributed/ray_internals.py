"""Every import of a private Ray module, each with its purpose and the public API that would replace it.

Private modules change without notice, so pyproject.toml pins Ray to the minor version that is tested. On a new one
check this file first; `tests/test_architecture.py` sees that no other file imports private modules.

What needs Ray Data or Ray Train is imported when it is asked for: a fleet's process must not pay 100 MB for it.
"""

from typing import TYPE_CHECKING, Any

# A channel with Ray's token and TLS, to ask a node how much it has spilled. Instead: `ray.util.state`, once it tells
# spilled bytes without a dashboard.
from ray._private.grpc_utils import init_grpc_channel

# Actors, placement groups and free resources from the control store (GCS). Instead: `ray.util.state.get_actor` and
# `list_placement_groups`, once they work without a dashboard, and `ray.available_resources` by node.
from ray._private.state import state

# Address of the dashboard, for the sweep's page. Instead: what `ray.init` returns, which a worker does not have.
from ray._private.worker import get_dashboard_url

# Whether the autoscaler heeds labels. Instead: nothing public.
from ray.autoscaler.v2.utils import is_autoscaler_v2

# Messages of Ray's processes, see below.
from ray.core.generated import common_pb2, gcs_pb2, node_manager_pb2
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

if TYPE_CHECKING:
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

__all__ = (
    "ActorDiedErrorContext",
    "ActorTableData",
    "FormatGlobalMemoryInfoRequest",
    "NodeManagerServiceStub",
    "PlacementGroupTableData",
    "data_execution_callback",
    "get_dashboard_url",
    "init_grpc_channel",
    "is_autoscaler_v2",
    "needless_train_callbacks",
    "state",
    "train_failure_policy",
    "train_preemption_info",
)


_common: Any = common_pb2  # generated, so without types
_gcs: Any = gcs_pb2
_node: Any = node_manager_pb2

ActorDiedErrorContext = _common.ActorDiedErrorContext
"""Why an actor died. Instead: as for `state`."""
ActorTableData, PlacementGroupTableData = _gcs.ActorTableData, _gcs.PlacementGroupTableData
"""Rows of the GCS: actors and reservations. Instead: as for `state`."""
FormatGlobalMemoryInfoRequest = _node.FormatGlobalMemoryInfoRequest
"""Asks a node (NodeManagerServiceStub) how much it has spilled. Instead: as for `init_grpc_channel`."""


def data_execution_callback() -> "type[ExecutionCallback]":
    """Base of what Ray Data calls after each step of its executor. Instead: an option for its polling interval."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    return ExecutionCallback


def train_failure_policy() -> "tuple[type[DefaultFailurePolicy], type[FailureDecision]]":
    """Base of Ray Train's judge of failures, and its verdicts. Instead: an option of FailureConfig that counts
    failures since the newest checkpoint."""
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

    return DefaultFailurePolicy, FailureDecision


def needless_train_callbacks() -> tuple[type[Any], ...]:
    """What Ray Train starts beside each training and we leave out. Instead: options of RunConfig."""
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    return DatasetsCallback, PlacementGroupCleanerCallback


def train_preemption_info() -> Any:
    """The notice that this worker's machine is to be taken away, or None. Instead: `ray.train.get_preemption_info`,
    once it does not wait for all workers."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info
