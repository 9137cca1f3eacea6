"""Private parts of Ray itself."""

from typing import Any

# A channel with Ray's token and TLS, to ask a node how much it has spilled. Instead: `ray.util.state`, once it tells
# spilled bytes without a dashboard.
from ray._private.grpc_utils import init_grpc_channel

# Actors, placement groups and free resources from the control store (GCS). Instead: `ray.util.state.get_actor` and
# `list_placement_groups`, once they work without a dashboard, and `ray.available_resources` by node.
from ray._private.state import state

# Address of the dashboard, for the sweep's page. Instead: what `ray.init` returns, which a worker does not have.
from ray._private.worker import get_dashboard_url

# Whether the autoscaler supports labels. There is no public API instead.
from ray.autoscaler.v2.utils import is_autoscaler_v2

# Messages of Ray's processes, see below.
from ray.core.generated import common_pb2, gcs_pb2, node_manager_pb2
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

__all__ = (
    "ActorDiedErrorContext",
    "ActorTableData",
    "FormatGlobalMemoryInfoRequest",
    "NodeManagerServiceStub",
    "PlacementGroupTableData",
    "get_dashboard_url",
    "init_grpc_channel",
    "is_autoscaler_v2",
    "state",
)


_common: Any = common_pb2  # generated, so without types
_gcs: Any = gcs_pb2
_node: Any = node_manager_pb2

ActorDiedErrorContext = _common.ActorDiedErrorContext
"""Why an actor died. Public API instead: as for `state`."""
ActorTableData, PlacementGroupTableData = _gcs.ActorTableData, _gcs.PlacementGroupTableData
"""Rows of the GCS: actors and reservations. Public API instead: as for `state`."""
FormatGlobalMemoryInfoRequest = _node.FormatGlobalMemoryInfoRequest
"""Asks a node (NodeManagerServiceStub) how much it has spilled. Public API instead: as for `init_grpc_channel`."""
