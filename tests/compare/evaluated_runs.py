"""Evaluation folders as jobs.evaluate leaves them, from outcomes laid out by hand."""

import json
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.evaluate.results import summarize, write_parquet
from tap_ray.types import EpisodeResult

TASKS = ("put_spoon_on_cloth", "push_pumpkin_left")


def make_protocol(**more) -> Protocol:
    return Protocol(**{"tasks": TASKS, "env_version": "1", "episodes": 4, **more})


def make_result(
    folder: Path,
    outcomes: Mapping[str, Sequence[str]],
    *,
    protocol: Protocol | None = None,
    name: str | None = None,
    run: Path | None = None,
    error: str = "",
) -> Path:
    """An evaluation folder. `outcomes`: task -> a letter per initial state: "." nothing, "p" partial, "e" entire.

    The same outcomes hold in every scenario but where a key "task/scenario" says otherwise. A "." never reached the
    object, a "p" dropped it. `error` is the reason of the first cell, if it is given.
    """
    protocol = protocol or make_protocol()
    rows = []
    for cell in cells(protocol):
        letter = outcomes.get(f"{cell.task}/{cell.scenario}", outcomes[cell.task])[cell.initial_state]
        rows.append(
            EpisodeResult(
                cell=cell,
                partial_once=letter in "pe",
                entire_once=letter == "e",
                partial_end=letter == "e",
                entire_end=letter == "e",
                num_steps=60,
                num_clipped=3,
                seconds=0.5,
                policy_ms=4.0,
                error=error if not rows else "",
                failure={".": "never_reached", "p": "dropped", "e": ""}[letter],
            )
        )
    (folder / "videos").mkdir(parents=True)
    values = summarize(rows, protocol, policy=name or folder.name, run=str(run) if run else None)
    (folder / "results.json").write_text(json.dumps(values))
    write_parquet(folder / "episodes.parquet", rows)
    return folder


def make_training(folder: Path, prefix: str, *, rate: float = 0.01, init: Path | None = None) -> Path:
    """A training folder with a manifest and metrics that fall exponentially."""
    folder.mkdir(parents=True)
    parents = {"init": {"path": str(init), "hash": "0"}} if init else {}
    (folder / "manifest.json").write_text(json.dumps({"job": "align", "hash": "1", "parents": parents}))
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(0, 400, 20):
            value = float(np.exp(-rate * step)) + 0.05
            line = {"step": step, f"{prefix}/loss": value, f"{prefix}/val_loss": value + 0.1, f"{prefix}/lr": 1e-3}
            file.write(json.dumps(line) + "\n")
    return folder
