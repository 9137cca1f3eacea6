"""Predicts the cost of a sweep from rates measured in finished runs of the store, without starting anything."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Mapping, Sequence

from tap_ray import runs, storage
from tap_ray.config import digest
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.media.text_table import grid
from tap_ray.settings import PretrainConfig, PriorJobConfig, TrainJobConfig, made_by
from tap_ray.sweep.trial import Trial
from tap_ray.training import session

UNKNOWN = "no measured rate yet"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Medians over finished runs; None if there is none."""

    samples_per_s: Mapping[str, float]
    """Job ("pretrain", "prior" or "align") -> windows per second, averaged over a whole run."""
    cell_s: float | None
    """Time of one robot for one cell of an evaluation, s."""
    num_runs: int
    """Number of runs that were measured."""


def measured(store: Path) -> Rates:
    """Measure the rates of the finished runs of a store."""
    trained: dict[str, list[float]] = {}
    cell_s: list[float] = []
    for manifest in sorted(store.glob("*/manifest.json")):
        run = manifest.parent
        if not runs.is_done(run):
            continue
        if (run / "results.json").exists():
            result = runs.read_json(run / "results.json")
            num = sum(score["n"] for row in result["tasks"].values() for score in row.values())
            cell_s += [result["seconds"] / num] if num else []
        for name, value in session.final_metrics(run).items():
            kind, _, metric = name.rpartition("/")
            if metric == "samples_per_s":
                trained.setdefault({"play": "pretrain", "bc": "align"}.get(kind, "prior"), []).append(value)
    return Rates(
        samples_per_s={job: median(values) for job, values in trained.items()},
        cell_s=median(cell_s) if cell_s else None,
        num_runs=len(cell_s) + sum(map(len, trained.values())),
    )


def forecast(trials: Sequence[Trial], protocol: Protocol, *, store: Path, num_evaluated: int) -> str:
    """A text table of the trials and the cost of each if it runs alone.

    Args:
        trials: trials of the sweep.
        protocol: protocol of their evaluations.
        store: parent folder of runs.
        num_evaluated: number of trials that will be evaluated.
    """
    rates, cpus = measured(store), os.cpu_count() or 1
    shared: set[Path] = set()
    lines, total = [], 0.0
    num = len(cells(protocol))
    evaluate_s = rates.cell_s * num / cpus if rates.cell_s else None
    for trial in trials:
        stage_1 = []
        costs: list[float | None] = []
        for job, config in (("pretrain", trial.pretrain), ("prior", trial.prior)):
            if config is not None:
                state = _found(config, store, shared)
                stage_1.append(f"{job} {state}")
                costs.append(_train_s(config, rates.samples_per_s.get(job)) if state == "new" else 0.0)
        align_s = _train_s(trial.align, rates.samples_per_s.get("align"))
        costs += [align_s, evaluate_s if num_evaluated == len(trials) else 0.0]
        known = [cost for cost in costs if cost is not None]
        total += sum(known)
        whole = _minutes(sum(known)) if len(known) == len(costs) else UNKNOWN
        name, before = f"{trial.id}  {trial.label}", ", ".join(stage_1) or "none"
        lines.append((name, before, _minutes(align_s), _minutes(evaluate_s), whole))
    table = grid(("Stage 1", "align", f"evaluate {num} cells"), lines, last="in all")
    if num_evaluated < len(trials):
        total += num_evaluated * (evaluate_s or 0.0)
    whole = f"about {_minutes(total)} if run one after another" if total else "no estimate of the time yet"
    end = f"{len(trials)} trials, {num_evaluated} of them evaluated: {whole}, with {cpus} CPUs"
    missing = [job for job in ("pretrain", "align") if job not in rates.samples_per_s]
    missing += [] if rates.cell_s else ["evaluate"]
    end += f" (rates of {rates.num_runs} finished runs in {store}"
    end += f"; {UNKNOWN} for {', '.join(missing)}: these are not counted)" if missing else ")"
    return f"{table}\n{end}. This is an upper bound: alignments that are stopped early or found in the store cost less."


def _found(config: PretrainConfig | PriorJobConfig, store: Path, shared: set[Path]) -> str:
    """Whether a Stage 1 run exists, will be trained by this trial, or by an earlier one."""
    parents = config.parents()
    settings = made_by(replace(config, out=None))
    if not all((storage.to_path(parent) / "meta").is_dir() for parent in parents.values()):
        path = store / digest(settings.identity)  # its play is still to be collected, so it has no name yet
    else:
        path = runs.folder_of(store, job="pretrain", config=settings, parents=parents)
    state = "found" if runs.is_done(path) else "shared" if path in shared else "new"
    shared.add(path)
    return state


def _train_s(config: TrainJobConfig, samples_per_s: float | None) -> float | None:
    samples = config.train.steps * config.train.windows_per_step * config.workers.num_workers
    return samples / samples_per_s if samples_per_s else None


def _minutes(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{seconds / 60:.1f} min"
