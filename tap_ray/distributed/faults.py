"""Finds out what died and why from Ray's control store (GCS), by the ids of actors and nodes and never from the text of
a message.

A death counts against the work of a process only if its machine is still alive and had memory left. All other deaths
are the machine's: the work is done again elsewhere, as often as needed, and is not recorded as a result.
"""

import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

from tap_ray.distributed.ray_internals.core import ActorDiedErrorContext, ActorTableData, state

LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
"""Exceptions of `ray.get` that mean that a call's process, machine or result was lost; an error raised by the call is
none of these."""
GCS_TIMEOUT_S = 30.0
"""How long Ray may take to report the state of an unreachable process, s. Ray declares a silent machine dead after 15
s."""
POLL_S = 0.05
"""Pause between two requests to the GCS meanwhile, s; short, because the work of the process waits."""


class Kind(Enum):
    """What was lost."""

    PROCESS = "process"
    """The process died on a machine that is alive: by itself, because of its work, or because somebody killed it."""
    HANG = "hang"
    """The process is alive but does not answer."""
    MEMORY = "memory"
    """Ray's memory monitor ended the process, because its machine was short of memory."""
    NODE = "node"
    """The machine of the process, or the machine that held its result, died."""
    PREEMPTION = "preemption"
    """The machine was preempted, as announced."""
    CONTACT = "contact"
    """Nothing died as far as Ray knows: the network was interrupted."""

    @property
    def own_fault(self) -> bool:
        """Whether the work of the process may be the cause."""
        return self in (Kind.PROCESS, Kind.HANG)


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long a fleet may take for an item, and how long to pause after it ran out of memory."""

    factor: float = 10.0
    """Limit as a multiple of the median duration of the items so far."""
    least_s: float = 300.0
    """Smallest limit, s."""
    first_s: float = 3600.0
    """Limit while no item has been completed, and for a fleet to become ready once it has been placed, s."""
    memory_s: float = 2.0
    """Pause before another process is started when memory is short, s; it doubles each time, up to 30 s."""


@dataclass(frozen=True, kw_only=True)
class CallState:
    """What is known about a call that returned no result."""

    node_alive: bool
    actor_dead: bool = True
    node_died: bool = False
    """Whether Ray gives the death of the node as the reason for the actor's end."""
    preempted: bool = False
    out_of_memory: bool = False
    result_lost: bool = False
    """Whether the call had ended and its result was lost."""
    overdue: bool = False
    """Whether the call has exceeded its time limit."""


def kind_of(call: CallState) -> Kind:
    """What was lost, from what is known about the call; faults of the machine take precedence over those of the
    process."""
    if call.preempted:
        return Kind.PREEMPTION
    if not call.node_alive or call.node_died or call.result_lost:
        return Kind.NODE
    if call.out_of_memory:
        return Kind.MEMORY
    if call.overdue:
        return Kind.HANG
    return Kind.PROCESS if call.actor_dead else Kind.CONTACT


@dataclass(frozen=True, kw_only=True)
class Death:
    """The end of a process and its cause."""

    kind: Kind
    node: str
    """Id of the node on which it ran; "" if it never ran."""
    reason: str
    """One line for error messages and logs."""


def death_of(actor: Any, error: Exception) -> Death:
    """Find out what became of an actor whose call raised one of LOST; waits until Ray knows."""
    reason = " ".join(str(error).split())
    if isinstance(error, OutOfMemoryError | ObjectLostError | NodeDiedError):
        node = node_of(actor)
        lost = not isinstance(error, OutOfMemoryError)
        return Death(kind=kind_of(CallState(node_alive=True, out_of_memory=not lost, result_lost=lost)), node=node,
                     reason=reason)  # fmt: skip
    until = time.monotonic() + GCS_TIMEOUT_S
    while True:
        row = _row(actor)
        dead, alive = row.state == ActorTableData.DEAD, node_alive(row.node_id.hex())
        if dead or not alive or time.monotonic() > until:
            break
        time.sleep(POLL_S)
    return Death(kind=kind_of(_call_state(row, alive=alive)), node=row.node_id.hex(), reason=reason)


def hang_of(actor: Any, waited_s: float) -> Death:
    """Find out what became of an actor that has not answered within its time limit."""
    node = node_of(actor)
    call = CallState(node_alive=node_alive(node), actor_dead=False, overdue=True)
    return Death(kind=kind_of(call), node=node, reason=f"no answer within {waited_s:.0f} s")


def _call_state(row: Any, *, alive: bool) -> CallState:
    cause = row.death_cause
    return CallState(
        node_alive=alive,
        actor_dead=row.state == ActorTableData.DEAD,
        node_died=cause.actor_died_error_context.reason == ActorDiedErrorContext.NODE_DIED,
        preempted=row.preempted,
        out_of_memory=cause.HasField("oom_context"),
    )


def _row(actor: Any) -> Any:
    """An actor's row in the GCS; an empty row, which counts as alive, if there is none."""
    record = state._connect_and_get_accessor().get_actor_info(actor._actor_id)
    return ActorTableData.FromString(record) if record else ActorTableData(state=ActorTableData.ALIVE)


def node_of(actor: Any) -> str:
    """Id of the node on which an actor runs or ran; "" if it has not been placed."""
    return _row(actor).node_id.hex()


def placed(actor: Any) -> bool:
    """Whether the cluster has placed an actor: it has a process, which may still be in `__init__`."""
    row = _row(actor)
    waiting = (ActorTableData.DEPENDENCIES_UNREADY, ActorTableData.PENDING_CREATION)
    return row.pid > 0 or row.state not in waiting


def node_alive(node: str) -> bool:
    """Whether Ray considers a node alive; "" (an actor that never ran) counts as alive."""
    return not node or any(known["NodeID"] == node and known["Alive"] for known in ray.nodes())
