"""Writes a study's results as files to keep: NAME.json with every trial, NAME.md with its tables, NAME.png with its
curves."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from tap_ray import runs
from tap_ray.compare.reading import KINDS, Result
from tap_ray.compare.tables import STANDARD
from tap_ray.metrics import Interval
from tap_ray.sweep import study_page
from tap_ray.sweep.study import SCORES, Difference, Outcomes, differences, drop, evaluations, outcomes, replaced
from tap_ray.sweep.study_plot import draw
from tap_ray.sweep.tables import SEED, TrialRow


@dataclass(frozen=True, kw_only=True)
class About:
    """How a study was made."""

    name: str
    """Base name of its files."""
    command: str
    wall_s: float
    """Wall-clock time, s, including earlier runs of the same command."""
    plan: Mapping[str, Any]
    """The sweep's file."""


def write(folder: Path, rows: Sequence[TrialRow], about: About) -> list[Path]:
    """Write the current results; nothing while no trial has been evaluated.

    Args:
        folder: output folder; made if it is missing.
        rows: the sweep's ledger.
        about: how the study was made.

    Returns:
        The files.

    Raises:
        CheckpointError: the folder of an evaluation is missing or damaged.
        StorageError: the disk refused.
    """
    results = evaluations(rows)
    if not results:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    protocol = next(iter(results.values())).protocol
    blocks = {scenario: outcomes(rows, results, scenario) for scenario in protocol["scenarios"]}
    first = next(iter(blocks.values()))
    files = [folder / f"{about.name}{suffix}" for suffix in (".md", ".json", ".png")]
    curves = draw(files[2], first)
    runs.write_json(files[1], _json(rows, results, blocks, about))
    study_page.write(files[1])
    return files if curves else files[:2]


def _json(
    rows: Sequence[TrialRow],
    results: Mapping[str, Result],
    blocks: Mapping[str, Sequence[Outcomes]],
    about: About,
) -> dict[str, Any]:
    first = next(iter(blocks.values()))
    return {
        "name": about.name,
        "command": about.command,
        "wall_s": round(about.wall_s, 1),
        "protocol": dict(next(iter(results.values())).protocol),
        **{key: value for key, value in runs.provenance().items() if key not in ("started", "command")},
        "trials": [_trial(row, results.get(row.id)) for row in rows],
        "points": {
            scenario: [
                {"axes": point.values, "seeds": point.seeds, "n": len(point.task_C)}
                | {score: _plain(point.interval(score)) for score in SCORES}
                | ({"drop": _plain(drop(before, point))} if STANDARD in blocks and scenario != STANDARD else {})
                for point, before in zip(points, blocks.get(STANDARD, points), strict=True)
            ]
            for scenario, points in blocks.items()
        },
        "against_scratch": {
            scenario: [_against(d) for d in differences(points)] for scenario, points in blocks.items()
        },
        "replaced": [{"axes": r.values, "needed": _plain(r.needed), "text": r.text} for r in replaced(first)],
        "sweep": dict(about.plan),
    }


def _trial(row: TrialRow, result: Result | None) -> dict[str, Any]:
    entry = {
        "id": row.id,
        "axes": {axis: value for axis, value in row.values.items() if axis != SEED},
        "seed": row.values.get(SEED),
        "state": row.state,
        "error": row.error,
        "seconds": {stage: round(seconds, 1) for stage, seconds in row.seconds.items()},
        "wall_s": round(sum(row.seconds.values()), 1),
        "stage_1": row.stage_1,
        "validation": row.validation,
        "runs": row.runs,
    }
    if result is None:
        return entry
    manifest = runs.read_json(result.path / "manifest.json") if (result.path / "manifest.json").exists() else {}
    counts = {
        task: {
            scenario: {"n": entry["n"], **{kind: entry[kind]["k"] for kind in KINDS}, **_followed(entry)}
            for scenario, entry in row_of.items()
        }
        for task, row_of in result.tasks.items()
    }
    return entry | {
        "n": len(result.episodes),
        "tasks": counts,
        **{score: (row.result or {}).get(score) for score in SCORES},
        "protocol_hash": result.protocol["hash"],
        "commit": manifest.get("git", ""),
        "hardware": manifest.get("machine", ""),
    }


def _followed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """In mixed scenes how often the instruction was followed, as counts."""
    return {kind: {part: share[part] for part in ("k", "n")} for kind, share in entry.get("sentence", {}).items()}


def _against(difference: Difference) -> dict[str, Any]:
    return {
        "axes": difference.values,
        "against": difference.against,
        "seeds": difference.num_seeds,
        **{score: _plain(interval) for score, interval in difference.by.items()},
        "mcnemar": {kind: test._asdict() for kind, test in difference.tests.items()},
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    """Convert to plain JSON values; infinity becomes null."""
    return {key: value if math.isfinite(value) else None for key, value in interval._asdict().items()}
