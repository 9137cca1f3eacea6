"""What died and why: asked of Ray's control store (GCS) by the ids of actors and nodes, never guessed from a message.

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
"""What `ray.get` raises where a call's process, machine or result was lost; an error of the call is none of these."""
PATIENCE_S = 30.0
"""How long Ray may take to say what became of a process out of reach, s. It gives up a silent machine after 15 s."""
POLL_S = 0.05


class Kind(Enum):
    """What was lost."""

    PROCESS = "process"
    """It died on a machine that lives: by itself, by what it ran, or by somebody's hand."""
    HANG = "hang"
    """It lives and gives no answer."""
    MEMORY = "memory"
    """Ray's memory monitor ended it, because its machine was short of memory."""
    NODE = "node"
    """Its machine died, or the machine that held its result."""
    PREEMPTION = "preemption"
    """Its machine was taken away, as announced."""
    CONTACT = "contact"
    """Nothing has died that Ray knows of: the network was interrupted."""

    @property
    def own_fault(self) -> bool:
        """Whether what the process ran may be the cause."""
        return self in (Kind.PROCESS, Kind.HANG)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a fleet may take for an item, and what is waited for after it ran out of memory."""

    factor: float = 10.0
    """Times the median duration of the items so far."""
    least_s: float = 300.0
    """But never less than this, s."""
    first_s: float = 3600.0
    """While no item has been done, and for a fleet to get ready once it has been placed, s."""
    memory_s: float = 2.0
    """Pause before another process is started where memory is short, s; doubled each time, 30 s at most."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a call that brought no result."""

    node_alive: bool
    actor_dead: bool = True
    node_died: bool = False
    """Ray's own reason for the actor's end."""
    preempted: bool = False
    out_of_memory: bool = False
    result_lost: bool = False
    """The call had ended; what it gave was lost on its way."""
    overdue: bool = False
    """We have stopped waiting for it."""


def kind_of(facts: Facts) -> Kind:
    """What was lost; the machine's faults come before the process's."""
    if facts.preempted:
        return Kind.PREEMPTION
    if not facts.node_alive or facts.node_died or facts.result_lost:
        return Kind.NODE
    if facts.out_of_memory:
        return Kind.MEMORY
    if facts.overdue:
        return Kind.HANG
    return Kind.PROCESS if facts.actor_dead else Kind.CONTACT


@dataclass(frozen=True, kw_only=True)
class Death:
    """The end of a process, and whose fault it was."""

    kind: Kind
    node: str
    """Id of the node it ran on; "" if it never ran."""
    reason: str
    """For a person, one line."""


def death_of(actor: Any, error: Exception) -> Death:
    """What became of an actor whose call raised one of LOST; waits until Ray knows."""
    reason = " ".join(str(error).split())
    if isinstance(error, OutOfMemoryError | ObjectLostError | NodeDiedError):
        node = node_of(actor)
        lost = not isinstance(error, OutOfMemoryError)
        return Death(kind=kind_of(Facts(node_alive=True, out_of_memory=not lost, result_lost=lost)), node=node,
                     reason=reason)  # fmt: skip
    until = time.monotonic() + PATIENCE_S
    while True:
        row = _row(actor)
        dead, alive = row.state == ActorTableData.DEAD, node_alive(row.node_id.hex())
        if dead or not alive or time.monotonic() > until:
            break
        time.sleep(POLL_S)
    return Death(kind=kind_of(_facts(row, alive=alive)), node=row.node_id.hex(), reason=reason)


def hang_of(actor: Any, waited_s: float) -> Death:
    """What to make of an actor that has given no answer for so long."""
    node = node_of(actor)
    facts = Facts(node_alive=node_alive(node), actor_dead=False, overdue=True)
    return Death(kind=kind_of(facts), node=node, reason=f"no answer within {waited_s:.0f} s")


def _facts(row: Any, *, alive: bool) -> Facts:
    cause = row.death_cause
    return Facts(
        node_alive=alive,
        actor_dead=row.state == ActorTableData.DEAD,
        node_died=cause.actor_died_error_context.reason == ActorDiedErrorContext.NODE_DIED,
        preempted=row.preempted,
        out_of_memory=cause.HasField("oom_context"),
    )


def _row(actor: Any) -> Any:
    """An actor's row in the GCS; an empty one, alive, where there is none."""
    told = state._connect_and_get_accessor().get_actor_info(actor._actor_id)
    return ActorTableData.FromString(told) if told else ActorTableData(state=ActorTableData.ALIVE)


def node_of(actor: Any) -> str:
    """Id of the node an actor runs or ran on; "" if it has not been placed."""
    return _row(actor).node_id.hex()


def placed(actor: Any) -> bool:
    """Whether the cluster has had room for an actor: it has a process, if only one that is still in `__init__`."""
    row = _row(actor)
    waiting = (ActorTableData.DEPENDENCIES_UNREADY, ActorTableData.PENDING_CREATION)
    return row.pid > 0 or row.state not in waiting


def node_alive(node: str) -> bool:
    """Whether Ray takes a node for alive; "", the node of what never ran, is."""
    return not node or any(known["NodeID"] == node and known["Alive"] for known in ray.nodes())
