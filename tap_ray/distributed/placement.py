"""Decides on which nodes of a cluster a job's processes run (Ray's node labels), and how many CPUs they reserve.

Ray schedules by reservations; they do not limit what a process may use. A job that reserved every CPU would block every
other job, and itself: trainers keep their reservation while they wait for data, and fleets until the last episode. A
job therefore reserves half of the CPUs, however few there are: two jobs run at the same time and share the cores, and
processes of a dead node can start on other nodes. With an autoscaler, each process reserves a whole CPU.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tap_ray.distributed.faults import Timeouts
from tap_ray.distributed.ray_internals.core import (
    FormatGlobalMemoryInfoRequest,
    NodeManagerServiceStub,
    PlacementGroupTableData,
    init_grpc_channel,
    is_autoscaler_v2,
    state,
)
from tap_ray.errors import ConfigError

LABEL = re.compile(r"([\w./-]+)=([\w.-]+)")
STATISTICS_S = 5.0
"""How long a statistic may take, s."""
JOBS_AT_ONCE = 2
"""Number of jobs whose reservations fit on the same nodes."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The number of fleets, their robots, and the writers. The data do not depend on it."""

    fleets: int = 0
    """Number of processes; 0: see `num_fleets`."""
    robots: int = 1
    """Robots in a process, stepped in lockstep."""
    writers: int = 0
    """Number of processes that write a dataset; 0: the driver writes; -1: as many as the fleets need."""
    gpus: float = 0.0
    """GPUs, or a share of one, that each fleet reserves."""
    labels: tuple[str, ...] = ()
    """KEY=VALUE that a node must have; none: any node."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    """How long a fleet may take for one item."""

    def __post_init__(self) -> None:
        if self.fleets < 0 or self.robots < 1:
            raise ConfigError(f"fleets must be at least 0 and robots at least 1; got {self.fleets} and {self.robots}.")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Cluster resources that each process of a job reserves."""

    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str]
    """Ray's `label_selector`."""

    def options(self) -> dict[str, Any]:
        """Options of `ray.remote`. "SPREAD" keeps the process out of the placement group of a sweep's trial."""
        strategy = {"label_selector": dict(self.labels), "scheduling_strategy": "SPREAD"}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **strategy}

    def fit(self) -> bool:
        """Whether a node has the resources for one process now."""
        free = state.available_resources_per_node()
        nodes = [node["NodeID"] for node in _alive() if self.labels.items() <= node["Labels"].items()]
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        return any(all(free.get(n, {}).get(name, 0.0) >= amount for name, amount in needed.items()) for n in nodes)

    def waiting(self, places: int) -> str:
        """The message while the cluster has no resources for this number of processes."""
        return waiting({"CPU": places * self.cpus, "GPU": places * self.gpus}, self.labels)


def waiting(resources: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """The message of a waiting job, e.g. "waiting for 8 GPU on role=train (3 in the cluster, 1 free)"."""
    free = state.available_resources_per_node()
    nodes = [node for node in _alive() if labels.items() <= node["Labels"].items()]
    where = "".join(f" on {key}={value}" for key, value in labels.items())
    return "; ".join(
        f"waiting for {amount:.3g} {name}{where} "
        f"({sum(node['Resources'].get(name, 0.0) for node in nodes):.3g} in the cluster, "
        f"{sum(free.get(node['NodeID'], {}).get(name, 0.0) for node in nodes):.3g} free)"
        for name, amount in resources.items()
        if amount
    )


def require_gpus(
    gpus: float,
    *,
    flag: str,
    places: int = 1,
    labels: Mapping[str, str] | None = None,
    instead: str = "0 to compute on CPUs",
) -> None:
    """Raise an error if processes could never be placed: Ray would wait forever for GPUs that do not exist.

    Args:
        gpus: GPUs of each process.
        flag: name of the user's flag, for the message.
        places: number of processes that must run at the same time.
        labels: labels of the nodes; if there are none, any node is used.
        instead: what the user may request instead of GPUs, for the message.

    Raises:
        ConfigError: `gpus` is neither a share of one GPU nor a whole number, or there are too few GPUs and no
            autoscaler that could add some.
    """
    if not gpus >= 0 or (gpus > 1 and gpus % 1):
        raise ConfigError(f"{flag} must be 0, a fraction of one GPU, or a whole number of GPUs; got {gpus:g}.")
    if gpus == 0 or fits_gpus(gpus, places, labels or {}) or grows():
        return
    there = of_nodes("GPU", labels or {})
    where = "".join(f" on {key}={value}" for key, value in (labels or {}).items())
    raise ConfigError(
        f"{flag} {gpus:g}: {places} process{'es' * (places > 1)} with that many GPUs cannot be placed: the Ray "
        f"cluster has {sum(there):g} GPUs{where}, at most {max(there, default=0):g} on one machine, and no "
        f"autoscaler. Request fewer, a fraction of one (e.g. 0.25), or {instead}."
    )


def fits_gpus(gpus: float, places: int, labels: Mapping[str, str]) -> bool:
    """Whether the live nodes have the GPUs for this number of processes, whether in use or not."""
    return _gpu_places(gpus, labels) >= places


def _gpu_places(gpus: float, labels: Mapping[str, str]) -> int:
    return sum(int(node_gpus / gpus + 1e-6) for node_gpus in of_nodes("GPU", labels))


def selector(labels: Sequence[str], *, flag: str = "--node-labels") -> dict[str, str]:
    """("role=play",) -> {"role": "play"}, Ray's `label_selector`. Ray is connected.

    Raises:
        ConfigError: a label is not KEY=VALUE, or no node has all labels and no autoscaler can add one.
    """
    matches = [LABEL.fullmatch(label) for label in labels]
    if wrong := [label for label, match in zip(labels, matches, strict=True) if match is None]:
        raise ConfigError(f"{flag} must be KEY=VALUE, e.g. role=play; got {', '.join(map(repr, wrong))}.")
    label_selector = {match[1]: match[2] for match in matches if match}
    if label_selector and not of_nodes("CPU", label_selector) and not grows():
        known = {f"{key}={value}" for node in _alive() for key, value in node["Labels"].items() if "ray.io/" not in key}
        raise ConfigError(
            f"No node of the Ray cluster has both CPUs and the labels {' '.join(labels)}, and the cluster has no "
            f"autoscaler that could add one. Its nodes have: {', '.join(sorted(known)) or 'no labels'}. Omit "
            f"{flag}, or start nodes with them (`ray start --labels`, cluster.yaml)."
        )
    return label_selector


def grows() -> bool:
    """Whether the cluster has an autoscaler that supports labels (Ray's autoscaler v2; `ray up` and cluster.yaml start
    it)."""
    return is_autoscaler_v2(fetch_from_server=True)


def capacity() -> dict[str, float]:
    """Resource ("CPU", "GPU", ...) -> amount that the cluster has, or can have at the limits of its autoscaler."""
    most = state.get_max_resources_from_cluster_config() or {}
    has: Mapping[str, float] = ray.cluster_resources()
    return {name: max(has.get(name, 0.0), most.get(name, 0.0)) for name in {*has, *most}}


def of_nodes(resource: str, labels: Mapping[str, str]) -> list[float]:
    """Amount of "CPU" or "GPU" of each live node that has these labels and any of that resource."""
    nodes = [node for node in _alive() if labels.items() <= node["Labels"].items()]
    return [node["Resources"][resource] for node in nodes if node["Resources"].get(resource)]


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def num_fleets(labels: Mapping[str, str], gpus: float = 0.0) -> int:
    """Default number of fleets: one for each CPU of the nodes with these labels, at least 1; of fleets that reserve
    `gpus` each, no more than their GPUs suffice for, unless an autoscaler can add some."""
    fleets = int(sum(of_nodes("CPU", labels)))
    return max(1, min(fleets, _gpu_places(gpus, labels)) if gpus and not grows() else fleets)


def of_fleets(fleets: int, most: int, labels: Mapping[str, str], gpus: float) -> tuple[int, Needs]:
    """The number of fleets that start, and what each of them reserves.

    Args:
        fleets: as the user asks; 0: see `num_fleets`.
        most: items of work; more fleets would have nothing to do.
        labels: labels of the nodes on which they run.
        gpus: GPUs that each of them reserves.
    """
    fleets = min(fleets or num_fleets(labels, gpus), most)
    return fleets, Needs(cpus=share(min(fleets, num_fleets(labels)), labels), gpus=gpus, labels=labels)


def share(num_places: int, labels: Mapping[str, str] | None = None, *, processes: int = 1) -> float:
    """CPUs that each place of a job reserves, at most one a process: all of them fit into half of each node.

    Args:
        num_places: number of places of the whole job; a place is a fleet, or a trainer with its data workers.
        labels: labels of the nodes on which it runs.
        processes: number of processes that share a place, and so a node.
    """
    return float(processes) if grows() else share_of(of_nodes("CPU", labels or {}) or [1.0], num_places, processes)


def share_of(cpus: Sequence[float], num_places: int, processes: int = 1) -> float:
    """`share` on nodes with so many CPUs each."""
    parts = [node_cpus / JOBS_AT_ONCE for node_cpus in cpus]
    # All places have the same size, and each node takes a whole number of them.
    sizes = {part / number for part in {*parts, float(processes)} for number in range(1, num_places + 1)}
    size = max(s for s in sizes if s <= processes and sum(int(part / s + 1e-6) for part in parts) >= num_places)
    return max(1e-3, int(1000 * size) / 1000)  # rounded down, so that sums never exceed the total


def here() -> Any:
    """A scheduling strategy that places an actor on this process's node: what a job cannot lose must run where its
    driver runs."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def spilled_bytes() -> int:
    """What the connected cluster's object stores have written to disk so far because they were full, bytes.

    0 if a node does not answer: a statistic must not end a job. Ray's own `get_memory_info_reply` would go through
    http_proxy.
    """
    try:
        node = _alive()[0]
        address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        channel: Any = init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)])
        with channel:
            ask = NodeManagerServiceStub(channel).FormatGlobalMemoryInfo
            reply = ask(FormatGlobalMemoryInfoRequest(include_memory_info=False), timeout=STATISTICS_S)
        return reply.store_stats.spilled_bytes_total
    except Exception:  # noqa: BLE001  whatever it is, the job continues
        return 0


def waiting_groups() -> str:
    """What this job's placement groups wait for, see `waiting`; "" if all are placed."""
    job = ray.get_runtime_context().get_job_id()
    pending = [
        bundle
        for group in _groups()
        if group.creator_job_id.hex() == job and group.state == PlacementGroupTableData.PENDING
        for bundle in group.bundles
    ]
    if not pending:
        return ""
    needed = {name: sum(b.unit_resources.get(name, 0.0) for b in pending) for name in ("CPU", "GPU")}
    return waiting(needed, dict(pending[0].label_selector))


def _groups() -> list[Any]:
    return [*map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())]


def release_orphans() -> int:
    """Remove this job's placement groups whose creator, an actor, is dead; returns how many there were.

    Ray keeps them until the job ends (ray-project/ray#54305): the reservation of a training whose trial was stopped
    would stay, and Ray Train's own cleaner asks the dashboard, which a local Ray does not have.
    """
    job = ray.get_runtime_context().get_job_id()
    orphans = [
        PlacementGroup(ray.PlacementGroupID(group.placement_group_id))
        for group in _groups()
        if group.creator_actor_dead
        and not ray.ActorID(group.creator_actor_id).is_nil()  # created by a driver
        and group.creator_job_id.hex() == job
        and group.state != PlacementGroupTableData.REMOVED
    ]
    for orphan in orphans:
        remove_placement_group(orphan)
    return len(orphans)
