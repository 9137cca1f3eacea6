"""Runs a collection job from start to end: dataset, MLflow run, Ray, collection, and the report."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from tap_ray import runs, tracking
from tap_ray.config import digest
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed import placement
from tap_ray.distributed.collect import Collection, CollectionStats, Player
from tap_ray.distributed.connect import connect
from tap_ray.distributed.placement import Pool
from tap_ray.errors import ConfigError
from tap_ray.play.collect import AttemptResult, CollectPlan
from tap_ray.play.demos import DemoPlan
from tap_ray.play.novelty import RoundVisitCounts, VisitCounts
from tap_ray.play.schedule import Schedule
from tap_ray.play.settings import RobotsConfig
from tap_ray.specs import RobotSpec


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a job records, and into which dataset."""

    job: str
    """Name of the job, e.g. "collect_play"."""
    header: DatasetHeader
    """Header of the dataset, see `header_of`."""
    out: Path
    tasks: tuple[str, ...]
    """Names of the schedule's tasks."""
    episodes: int
    """Number of episodes of each task."""
    make_player: Callable[[Any], Player]
    """Builds a fleet's robots in its process, given the novelty memory; must pickle."""
    memory: RoundVisitCounts | None = None
    """Novelty memory of explorers that share one; else None."""
    visits_of: Callable[[AttemptResult], VisitCounts] | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"{self.job} must collect at least 1 episode; got --episodes {self.episodes}.")


def header_of(
    plan: CollectPlan | DemoPlan,
    spec: RobotSpec,
    *,
    num_objects: int,
    entries: Mapping[str, Any] | None = None,
    contact: bool = True,
) -> DatasetHeader:
    """The header of a dataset of simulated robots.

    Args:
        plan: what the robots do, and where.
        spec: interface of the robots.
        num_objects: number of object slots in a frame's `privileged.object_pose`.
        entries: what the data depend on besides the plan, as plain values.
        contact: whether contact is known.
    """
    size = (plan.env.image_size, plan.env.image_size)
    values, mask = {**plan.to_json(), **(entries or {})}, plan.env.robot_mask
    return DatasetHeader(
        spec=spec, plan=values, image_size=size, num_objects=num_objects, robot_mask=mask, contact=contact
    )


def pool_of(config: RobotsConfig, *, gpu: bool = False) -> Pool:
    """The pool of fleets and writers that a config asks for; `gpu`: whether its simulator needs a GPU."""
    return Pool(
        fleets=config.fleets,
        robots=config.robots_per_fleet,
        writers=config.writers,
        gpus=config.gpus_per_fleet or float(gpu),
        labels=config.node_labels,
    )


def default_folder(kind: str, plan: Mapping[str, Any]) -> Path:
    """data/<kind>-<hash of the plan>: the same command finds its own dataset, and more episodes make it longer."""
    return Path("data") / f"{kind}-{digest(plan)[:10]}"


def record(
    recording: Recording,
    config: Mapping[str, Any],
    *,
    pool: Pool,
    ray_address: str | None,
    report: Callable[[Path], Path] | None = None,
) -> Path:
    """Collect the missing episodes and print a summary; does nothing if neither episodes nor the report are missing.

    Args:
        recording: what to record, and into which dataset.
        config: the job's resolved config, for MLflow and the manifest.
        pool: fleets and robots.
        ray_address: see `connect`.
        report: writes a report on the dataset and returns its path.

    Returns:
        The dataset's folder.

    Raises:
        TapRayError: the robots cannot be built or no machine has their GPUs (raised before anything is written), or
            `Collection.run` raises it.
    """
    recording.make_player(None)
    schedule = Schedule(num_tasks=len(recording.tasks), episodes=recording.episodes)
    with _with_gpus(pool, ray_address), DatasetWriter(recording.out, recording.header) as writer:
        control_hz = recording.header.spec.control_hz
        collection = Collection(
            writer, schedule, memory=recording.memory, visits_of=recording.visits_of, control_hz=control_hz
        )
        if not schedule.pending() and _finished(recording.out, report is not None):
            print(f"{recording.out} already has its {writer.committed} episodes.")
            return recording.out
        run_id = tracking.run_id_of(recording.out)
        with tracking.start(recording.job, recording.out, config, run_id=run_id) as tracked:
            _manifest(recording, config, tracked.run_id, status="running")
            stats = CollectionStats()
            # Otherwise the job was killed after its last commit, and only the manifest is missing.
            if schedule.pending():
                with connect(ray_address):
                    stats = collection.run(recording.make_player, pool)
            metadata = _metadata(recording, schedule, stats)
            tracked.log(_metrics(recording.job, metadata), step=writer.committed)
            if report is not None:
                written = report(recording.out)
                tracked.artifact(written.parent)
                metadata["report"] = str(written.relative_to(recording.out))
            _manifest(recording, config, tracked.run_id, status="done", **metadata)
    print(summary(recording, schedule, stats))
    return recording.out


@contextmanager
def _with_gpus(pool: Pool, ray_address: str | None) -> Iterator[None]:
    """Connect to Ray if fleets reserve GPUs, and raise a ConfigError if no fleet could ever be placed."""
    if not pool.gpus:
        yield
        return
    with connect(ray_address):
        labels = placement.selector(pool.labels)
        instead = "a simulator that needs no GPU (--sim maniskill, --sim pybullet)"
        placement.require_gpus(pool.gpus, flag="--gpus-per-fleet", labels=labels, instead=instead)
        yield


def _finished(out: Path, with_report: bool) -> bool:
    """Whether a job has finished this dataset, according to its manifest."""
    manifest = runs.read_json(out / "manifest.json") if (out / "manifest.json").exists() else {}
    if manifest.get("status") != "done":
        return False
    return not with_report or ("report" in manifest and (out / manifest["report"]).exists())


def summary(recording: Recording, schedule: Schedule, stats: CollectionStats) -> str:
    """Lines of text: what was collected in this call, and how many attempts were dropped for which reason."""
    hz = recording.header.spec.control_hz
    contact = f"; contact in {stats.contact_rate:.0%} of the frames" if recording.header.contact else ""
    lines = [
        f"{stats.episodes} episodes, {stats.frames} frames in {stats.seconds:.0f} s: {stats.frames_s:.0f} frames/s, "
        f"{stats.frames_s / hz:.0f}x real time{contact}"
        if stats.frames
        else f"{recording.out} already had its episodes; the missing parts of its report and manifest were written."
    ]
    for number, task in enumerate(recording.tasks):
        if schedule.tried[number] == schedule.kept[number]:
            continue
        lines.append(f"{task}: {schedule.kept[number]} of {schedule.tried[number]} attempts were kept; dropped:")
        lines += [f"  {count} x {reason}" for reason, count in _reasons(schedule, number).most_common()]
    return "\n".join(lines)


def _reasons(schedule: Schedule, task: int) -> Counter[str]:
    return Counter(reason for attempt, reason in schedule.dropped if attempt % schedule.num_tasks == task)


def _metadata(recording: Recording, schedule: Schedule, stats: CollectionStats) -> dict[str, Any]:
    now = {"frames_per_s": stats.frames_s} if stats.frames else {}
    if stats.frames and recording.header.contact:
        now["contact_rate"] = stats.contact_rate
    return {
        **now,
        "spilled_bytes": stats.spilled_bytes,
        "attempts": {task: schedule.tried[number] for number, task in enumerate(recording.tasks)},
        "kept": {task: schedule.kept[number] for number, task in enumerate(recording.tasks)},
        "dropped": {task: dict(_reasons(schedule, number)) for number, task in enumerate(recording.tasks)},
    }


def _metrics(job: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    stage = job.removeprefix("collect_")
    return {
        **{f"{stage}/{name}": metadata[name] for name in ("frames_per_s", "contact_rate") if name in metadata},
        f"{stage}/episodes": float(sum(metadata["kept"].values())),
        f"{stage}/dropped": float(sum(metadata["attempts"].values()) - sum(metadata["kept"].values())),
    }


def _manifest(recording: Recording, config: Mapping[str, Any], run_id: str, *, status: str, **metadata: Any) -> None:
    """Write how the dataset was made into a manifest beside it: the data themselves must not depend on when and
    where."""
    manifest = {"job": recording.job, "hash": recording.header.to_json()["hash"], "status": status, "parents": {}}
    values = {**manifest, "mlflow_run_id": run_id, "config": dict(config), **runs.provenance(), **metadata}
    runs.write_json(recording.out / "manifest.json", values)
