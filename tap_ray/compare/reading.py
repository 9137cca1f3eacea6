"""Reads results and learning curves from run folders. All checks are done here, so tables and plots need none."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tap_ray import logs, storage
from tap_ray.cache import cached
from tap_ray.config import differences
from tap_ray.errors import CheckpointError, DataError
from tap_ray.metrics import Interval, wilson
from tap_ray.runs import read_json

CELL = ["task", "scenario", "initial_state", "seed"]
KINDS = ("partial", "entire")
OUTCOMES = ("partial_once", "entire_once", "partial_end", "entire_end")
COLUMNS = (*CELL, *OUTCOMES, "num_steps", "num_clipped", "policy_ms", "error")
RESULT_KEYS = ("protocol", "policy", "tasks", "seconds")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a policy was trained."""

    demos: int
    """Number of demonstrations, all tasks together."""
    scratch: bool
    """Whether it was trained without play: no Stage 1, no motion prior, no co-training."""
    setting: str
    """How else: the policies of one setting differ in nothing but their seed. JSON."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluated policy."""

    path: Path
    label: str
    """Name in tables and plots, unique among the runs compared."""
    protocol: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """task -> scenario -> {"n", "partial": {"k", "rate", "low", "high"}, "entire": the same, "failures"}."""
    episodes: pd.DataFrame
    """One row an episode, indexed by the cell (task, scenario, initial state, seed), sorted."""
    seconds: float
    policy_run: Path | None
    """The training run that was evaluated, None for a built-in policy, or where it is not found."""
    failure_class: Mapping[str, str]
    """Label of a failure -> "execution" or "semantic"; empty for what was evaluated before failures had labels."""
    trained: Trained | None = None
    """How the policy was trained, if `read_runs` finds its training run; None for a built-in policy."""
    elsewhere: str = ""
    """The training run that this policy comes from and that was not read, because it lies in another storage."""

    @property
    def scenarios(self) -> list[str]:
        """The scenarios, in the order of the protocol."""
        return list(next(iter(self.tasks.values())))

    def score(self, task: str, scenario: str, kind: str) -> Interval:
        """Rate and Wilson interval of "partial" or "entire" in one task and scenario."""
        entry = self.tasks[task][scenario][kind]
        return Interval(entry["rate"], entry["low"], entry["high"])

    def average(self, scenario: str, kind: str) -> Interval:
        """Mean over tasks as in the paper, with the Wilson interval of the pooled counts (tasks have equal n)."""
        entries = [self.tasks[task][scenario] for task in self.tasks]
        mean = sum(entry[kind]["rate"] for entry in entries) / len(entries)
        pooled = wilson(sum(entry[kind]["k"] for entry in entries), sum(entry["n"] for entry in entries))
        return Interval(mean, pooled.low, pooled.high)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The metrics that one training run logged."""

    path: Path
    label: str
    points: pd.DataFrame
    """Columns metric, step, value; sorted; after a resumed run the later value of a step counts."""


def read_runs(runs: Sequence[Path | str]) -> tuple[list[Result], list[Curves]]:
    """Read what is to be compared.

    Args:
        runs: evaluation folders (results.json) and training folders (metrics.jsonl). The training run behind an
            evaluated policy, and the Stage 1 run behind that one, are found by themselves if they lie in the same
            storage: a manifest cannot make this machine connect to a server that the user did not name.

    Raises:
        CheckpointError: a folder is neither of these, is damaged, or was evaluated with another protocol than the
            first.
        DataError: two results of one protocol do not have the same cells.
    """
    paths = list(dict.fromkeys(storage.to_path(run) for run in runs))
    if not paths:
        raise CheckpointError("There is nothing to compare. Give at least one run folder of jobs.evaluate.")
    evaluated = [path for path in paths if (path / "results.json").exists()]
    results = _labeled([read_result(path) for path in evaluated])
    require_comparable(results)
    trained: dict[Path, str] = {}
    for path in paths:
        if path not in evaluated:
            trained[path.resolve()] = path.name
    for number, result in enumerate(results):
        lineage, elsewhere = _lineage(result.policy_run)
        known = _trained(result.policy_run)
        results[number] = replace(result, trained=known, elsewhere=result.elsewhere or elsewhere)
        for path in lineage:
            trained.setdefault(path, result.label if path == result.policy_run else path.name)
    return results, [read_curves(path, label) for path, label in trained.items()]


def read_result(path: Path) -> Result:
    """Read one evaluation folder.

    Raises:
        CheckpointError: a file or key is missing, or the episodes do not add up to the results.
    """
    data = read_json(path / "results.json")
    if missing := [key for key in RESULT_KEYS if key not in data]:
        raise CheckpointError(
            f"{path / 'results.json'} lacks {', '.join(missing)}. Evaluate again with this version of tap_ray."
        )
    episodes = _read_episodes(path / "episodes.parquet")
    _require_consistent(path, data["tasks"], episodes)
    named = str(data["policy"].get("run") or "")
    elsewhere = named if not storage.is_same(named, path) else ""
    run = storage.to_path(named) if named and not elsewhere else None
    return Result(
        path=path,
        label=str(data["policy"]["name"]),
        protocol=data["protocol"],
        tasks=data["tasks"],
        episodes=episodes.set_index(CELL).sort_index(),
        seconds=float(data["seconds"]),
        policy_run=run if run is not None and (run / "manifest.json").exists() else None,
        failure_class=data.get("failure_class", {}),
        elsewhere=elsewhere,
    )


def read_curves(path: Path, label: str) -> Curves:
    """Read the metrics of one training folder.

    Raises:
        CheckpointError: it has none, or a line other than the last is damaged (the last may be truncated by a kill).
    """
    file = path / "metrics.jsonl"
    if not logs.exists(file):
        state = "contains neither results.json nor metrics.jsonl" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {state}. Give run folders of jobs.evaluate, jobs.align or jobs.pretrain.")
    lines = logs.read(file).decode(errors="replace").splitlines()
    points: dict[tuple[str, int], float] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
        except (ValueError, KeyError, AttributeError):
            if number == len(lines):
                break
            raise CheckpointError(f"{file}, line {number} is not a JSON object with a step: {line[:60]!r}.") from None
        points |= {(name, step): float(v) for name, v in entry.items() if isinstance(v, (int, float))}
    rows = sorted((name, step, value) for (name, step), value in points.items())
    return Curves(path=path, label=label, points=pd.DataFrame(rows, columns=["metric", "step", "value"]))


def require_comparable(results: Sequence[Result]) -> None:
    """Raise unless all results come from one protocol and the same cells.

    Raises:
        CheckpointError: the protocol's hashes differ; names both and what differs.
        DataError: the hashes agree and the cells do not.
    """
    for other in results[1:]:
        first = results[0]
        if first.protocol["hash"] != other.protocol["hash"]:
            lines = differences(first.protocol, other.protocol)
            what = "\n  ".join(line.replace(" before, ", " there, ").replace(" now", " here") for line in lines)
            raise CheckpointError(
                f"{first.path} and {other.path} were evaluated by different protocols "
                f"({first.protocol['hash']} and {other.protocol['hash']}) and cannot be compared:\n  {what}\n"
                "Evaluate one of them again with the protocol of the other."
            )
        if not first.episodes.index.equals(other.episodes.index):
            raise DataError(
                f"{first.path} and {other.path} have the same protocol {first.protocol['hash']} but different cells: "
                f"{len(first.episodes)} and {len(other.episodes)} episodes. One of them is damaged. Evaluate it again."
            )


def _read_episodes(path: Path) -> pd.DataFrame:
    try:
        table = pq.read_table(cached(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. Evaluate again.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Evaluate again.") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise CheckpointError(
            f"{path} lacks the columns {', '.join(missing)}. Evaluate again with this version of tap_ray."
        )
    return table.to_pandas()


def _require_consistent(path: Path, tasks: Mapping[str, Any], episodes: pd.DataFrame) -> None:
    groups = episodes.groupby(["task", "scenario"])[["partial_once", "entire_once"]].agg(["sum", "size"])
    in_summary = {
        (t, s): (e["n"], e["partial"]["k"], e["entire"]["k"]) for t, row in tasks.items() for s, e in row.items()
    }
    found = {
        (str(t), str(s)): (int(row.iloc[1]), int(row.iloc[0]), int(row.iloc[2]))
        for (t, s), row in groups.iterrows()  # type: ignore[misc]
    }
    for cell in sorted({*in_summary, *found}):
        if in_summary.get(cell) != found.get(cell):
            raise CheckpointError(
                f"{path}: results.json and episodes.parquet disagree on {' / '.join(cell)}: (n, partial, entire) is "
                f"{in_summary.get(cell)} in one and {found.get(cell)} in the other. Evaluate again."
            )


def _labeled(results: Sequence[Result]) -> list[Result]:
    """Make labels unique: runs of the same name get their folder's name as well, and then a number."""
    labels = [result.label for result in results]
    labels = [
        f"{label} ({r.path.name})" if labels.count(label) > 1 else label
        for label, r in zip(labels, results, strict=True)
    ]
    labels = [f"{label} #{i + 1}" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    return [replace(result, label=label) for result, label in zip(results, labels, strict=True)]


def _trained(run: Path | None) -> Trained | None:
    """How a run of jobs.align was trained; None for any other run, and if the number of demonstrations is unknown."""
    manifest = {} if run is None else read_json(run / "manifest.json")
    if run is None or manifest.get("job") != "align" or not (run / "config.json").exists():
        return None
    config, parents = read_json(run / "config.json"), manifest.get("parents", {})
    demos = config.get("windows", {}).get("num_episodes", 0) or _size(parents.get("demos", {}), run)
    scratch = not any(role in ("init", "prior") or role.startswith("play") for role in parents)
    return Trained(demos=demos, scratch=scratch, setting=_setting(config, parents)) if demos else None


def _setting(config: Mapping[str, Any], parents: Mapping[str, Any]) -> str:
    """What of a config of jobs.align, and which demonstrations, decide how good a policy gets, as JSON without the
    seed."""
    train = {name: value for name, value in config.get("train", {}).items() if name != "seed"}
    kept = {name: config.get(name) for name in ("policy", "align", "windows")}
    workers = config.get("workers", 1)  # a number in older runs
    num_workers = workers.get("num_workers", 1) if isinstance(workers, Mapping) else workers
    kept |= {"history": config.get("history", 0), "num_workers": num_workers}
    return json.dumps({**kept, "train": train, "demos": parents.get("demos", {}).get("hash")}, sort_keys=True)


def _size(parent: Mapping[str, Any], run: Path) -> int:
    """Number of episodes of a dataset in the same storage as the run; 0 for a dataset elsewhere, because no other
    storage is read."""
    if not parent or not storage.is_same(parent["path"], run):
        return 0
    info = storage.to_path(parent["path"]) / "meta" / "info.json"
    return int(read_json(info).get("total_episodes", 0)) if info.exists() else 0


def _lineage(run: Path | None) -> tuple[list[Path], str]:
    """The training run and the runs that it was initialized from, if they still exist and logged metrics; and the first
    one that lies in another storage, which is not read."""
    found: list[Path] = []
    while run is not None and run not in found and (run / "manifest.json").exists():
        if logs.exists(run / "metrics.jsonl"):
            found.append(run)
        parent = read_json(run / "manifest.json").get("parents", {}).get("init")
        if parent and not storage.is_same(parent["path"], run):
            return found, str(parent["path"])
        run = storage.to_path(parent["path"]) if parent else None
    return found, ""
