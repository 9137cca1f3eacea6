"""Where a job's processes go: which nodes of a cluster (Ray's node labels), and how much of their CPUs it reserves.

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

from tap_ray.distributed.faults import Patience
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
"""Jobs whose reservations fit on the same nodes."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How many fleets of how many robots, and who writes what they play. It does not change the data."""

    fleets: int = 0
    """Processes; 0: one for each CPU of the cluster."""
    robots: int = 1
    """Robots in a process, stepped in lockstep."""
    writers: int = 0
    """Processes that write a dataset; 0: the driver does; -1: as many as the fleets need."""
    labels: tuple[str, ...] = ()
    """KEY=VALUE that a node must have; none: any node."""
    patience: Patience = field(default_factory=Patience)
    """How long a fleet may take for what it is given at a time."""

    def __post_init__(self) -> None:
        if self.fleets < 0 or self.robots < 1:
            raise ConfigError(f"fleets must be at least 0 and robots at least 1; got {self.fleets} and {self.robots}.")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What each process of a job takes of the cluster."""

    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str]
    """Ray's `label_selector`."""

    def options(self) -> dict[str, Any]:
        """For `ray.remote`. "SPREAD": a trial of a sweep has a placement group, into which nothing may be squeezed."""
        wanted = dict(self.labels)
        strategy = {"label_selector": wanted, "scheduling_strategy": "SPREAD"}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **strategy}

    def fit(self) -> bool:
        """Whether a node has room for one now."""
        free = state.available_resources_per_node()
        nodes = [node["NodeID"] for node in _alive() if self.labels.items() <= node["Labels"].items()]
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return any(all(free.get(n, {}).get(name, 0.0) >= amount for name, amount in wanted.items()) for n in nodes)

    def waiting(self, places: int) -> str:
        """What a job says while the cluster has no room for so many processes."""
        return waiting({"CPU": places * self.cpus, "GPU": places * self.gpus}, self.labels)


def waiting(resources: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """E.g. "waiting for 8 GPU on role=train (3 in the cluster, 1 free)"."""
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


def require_gpus(gpus: float, *, flag: str, places: int = 1, labels: Mapping[str, str] | None = None) -> None:
    """Raise where processes could never be placed: Ray would wait for GPUs that nobody brings, without end.

    Args:
        gpus: for each process.
        flag: the user's, for the message.
        places: processes that must run at once.
        labels: of the nodes; none: any.

    Raises:
        ConfigError: no share of a GPU and no whole number of them; or too few, and no autoscaler that could add some.
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
        "autoscaler. Request fewer, a fraction of one (e.g. 0.25), or 0 to compute on CPUs."
    )


def fits_gpus(gpus: float, places: int, labels: Mapping[str, str]) -> bool:
    """Whether the live nodes have the GPUs for so many processes, in use or not."""
    return sum(int(own / gpus + 1e-6) for own in of_nodes("GPU", labels)) >= places


def selector(labels: Sequence[str]) -> dict[str, str]:
    """("role=play",) -> {"role": "play"}, Ray's `label_selector`. Ray is connected.

    Raises:
        ConfigError: a label is not KEY=VALUE, or no node has them all and none that has will ever come.
    """
    matches = [LABEL.fullmatch(label) for label in labels]
    if wrong := [label for label, match in zip(labels, matches, strict=True) if match is None]:
        raise ConfigError(f"--node-labels must be KEY=VALUE, e.g. role=play; got {', '.join(map(repr, wrong))}.")
    wanted = {match[1]: match[2] for match in matches if match}
    if wanted and not of_nodes("CPU", wanted) and not grows():
        known = {f"{key}={value}" for node in _alive() for key, value in node["Labels"].items() if "ray.io/" not in key}
        raise ConfigError(
            f"No node of the Ray cluster has both CPUs and the labels {' '.join(labels)}, and the cluster has no "
            f"autoscaler that could add one. Its nodes have: {', '.join(sorted(known)) or 'no labels'}. Omit "
            "--node-labels, or start nodes with them (`ray start --labels`, cluster.yaml)."
        )
    return wanted


def grows() -> bool:
    """Whether the cluster has an autoscaler that heeds labels (Ray's second; `ray up` and cluster.yaml start it)."""
    return is_autoscaler_v2(fetch_from_server=True)


def capacity() -> dict[str, float]:
    """ "CPU", "GPU" ... that the cluster has, or will have once its autoscaler has brought all that it may."""
    most = state.get_max_resources_from_cluster_config() or {}
    has: Mapping[str, float] = ray.cluster_resources()
    return {name: max(has.get(name, 0.0), most.get(name, 0.0)) for name in {*has, *most}}


def of_nodes(resource: str, wanted: Mapping[str, str]) -> list[float]:
    """How much of "CPU" or "GPU" each live node has that has some, and these labels."""
    nodes = [node for node in _alive() if wanted.items() <= node["Labels"].items()]
    return [node["Resources"][resource] for node in nodes if node["Resources"].get(resource)]


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def num_fleets(wanted: dict[str, str]) -> int:
    """One for each CPU of the nodes that have these labels, at least 1."""
    return max(1, int(sum(of_nodes("CPU", wanted))))


def share(num_places: int, wanted: dict[str, str] | None = None, *, processes: int = 1) -> float:
    """CPUs that each place of a job reserves, at most one a process: all of them fit into half of each node.

    Args:
        num_places: of the whole job: fleets, or trainers with what makes their data.
        wanted: labels of the nodes it runs on.
        processes: that share a place, and so a node.
    """
    return float(processes) if grows() else split(of_nodes("CPU", wanted or {}) or [1.0], num_places, processes)


def split(cpus: Sequence[float], num_places: int, processes: int = 1) -> float:
    """`share` on nodes with so many CPUs each."""
    parts = [own / JOBS_AT_ONCE for own in cpus]
    # Places of one size, of which each node's part takes a whole number.
    sizes = {part / number for part in {*parts, float(processes)} for number in range(1, num_places + 1)}
    size = max(s for s in sizes if s <= processes and sum(int(part / s + 1e-6) for part in parts) >= num_places)
    return max(1e-3, int(1000 * size) / 1000)  # rounded down: sums never exceed the whole


def here() -> Any:
    """A scheduling strategy: this process's node. What a job cannot lose must live where its driver does."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def spilled_bytes() -> int:
    """What the connected cluster's object stores have written to disk so far because they were full, bytes.

    0 where nobody says: a statistic ends no job. Ray's own `get_memory_info_reply` would ask through http_proxy.
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
    """What this job's placement groups wait for, see `waiting`; "" if each has its place."""
    job = ray.get_runtime_context().get_job_id()
    pending = [
        bundle
        for group in _groups()
        if group.creator_job_id.hex() == job and group.state == PlacementGroupTableData.PENDING
        for bundle in group.bundles
    ]
    if not pending:
        return ""
    wanted = {name: sum(b.unit_resources.get(name, 0.0) for b in pending) for name in ("CPU", "GPU")}
    return waiting(wanted, dict(pending[0].label_selector))


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
        and not ray.ActorID(group.creator_actor_id).is_nil()  # a driver's own
        and group.creator_job_id.hex() == job
        and group.state != PlacementGroupTableData.REMOVED
    ]
    for orphan in orphans:
        remove_placement_group(orphan)
    return len(orphans)
