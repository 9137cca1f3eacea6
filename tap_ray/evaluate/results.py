"""Reads and writes the files of an evaluation: episodes.jsonl while it runs, then results.json and episodes.parquet."""

import json
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Iterable, Sequence, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tap_ray import logs, storage
from tap_ray.evaluate.failures import CLASS_OF, LABELS, FailureClass
from tap_ray.evaluate.protocol import Protocol
from tap_ray.metrics import wilson
from tap_ray.runs import write_json
from tap_ray.types import Cell, EpisodeResult


def summarize(
    results: Sequence[EpisodeResult], protocol: Protocol, *, policy: str, run: str | None = None
) -> dict[str, Any]:
    """Compute the contents of results.json.

    Args:
        results: one for every cell of the protocol, in any order.
        protocol: the protocol of these cells.
        policy: name of the policy in tables.
        run: its run folder; None for a built-in policy.

    Returns:
        Plain values. Rates are in [0, 1] with Wilson 95 % intervals. `avg_*` are the paper's averages: means of the
        rates over tasks (and scenarios); `avg_all` is the mean of partial and entire. Because all tasks have the same
        number of cells, the intervals of the first two are those of the pooled counts. `seconds` is the time of all
        robots' processes. `failures` are explained at `count_failures`, `sentence` (mixed scenes only) at
        `count_followed`.
    """
    table: dict[str, dict[str, Any]] = {}
    for task in protocol.tasks:
        table[task] = {}
        for scenario in protocol.scenarios:
            table[task][scenario] = _score(r for r in results if (r.cell.task, r.cell.scenario) == (task, scenario))
    whole = _score(results)
    scores = [score for row in table.values() for score in row.values()]
    average = {kind: float(np.mean([score[kind]["rate"] for score in scores])) for kind in ("partial", "entire")}
    timed = [r.policy_ms for r in results if not r.error]
    sentence = {"sentence": whole["sentence"]} if "sentence" in whole else {}
    return {
        **sentence,
        "protocol": protocol.to_json(),
        "policy": {"name": policy, "run": run},
        "tasks": table,
        "avg_partial": average["partial"],
        "avg_entire": average["entire"],
        "avg_all": (average["partial"] + average["entire"]) / 2,
        "avg_partial_interval": [whole["partial"]["low"], whole["partial"]["high"]],
        "avg_entire_interval": [whole["entire"]["low"], whole["entire"]["high"]],
        "errors": whole["errors"],
        "failures": whole["failures"],
        "failure_class": dict(CLASS_OF),
        "policy_ms": float(np.mean(timed)) if timed else None,
        "seconds": sum(r.seconds for r in results),
    }


def _score(results: Iterable[EpisodeResult]) -> dict[str, Any]:
    rows = list(results)
    counts = {
        "partial": sum(r.partial_once for r in rows),
        "entire": sum(r.entire_once for r in rows),
        "partial_end": sum(r.partial_end for r in rows),
        "entire_end": sum(r.entire_end for r in rows),
    }
    rates = {kind: {"k": k, **wilson(k, len(rows))._asdict()} for kind, k in counts.items()}
    errors = sum(bool(r.error) for r in rows)
    score = {"n": len(rows), **rates, "errors": errors, "failures": count_failures(rows)}
    return score | ({"sentence": count_followed(rows)} if any(r.cell.partner for r in rows) else {})


def count_followed(results: Iterable[EpisodeResult]) -> dict[str, Any]:
    """Count in mixed scenes how often the instruction determined the object, i.e. which task's object was moved first.

    Returns:
        "followed": of the episodes in which either was moved, those that moved the asked task's first. Each scene is
        evaluated under both sentences, so a policy that ignores them is at one half. "wrong_object": of all episodes,
        those that moved the other task's first. Each {"k", "n", "rate", "low", "high"}, a share in [0, 1] (None for
        n = 0) with its Wilson 95 % interval.
    """
    rows = list(results)
    right = sum(r.first_moved == r.cell.task for r in rows)
    wrong = sum(bool(r.first_moved) for r in rows) - right
    return {"followed": _share(right, right + wrong), "wrong_object": _share(wrong, len(rows))}


def _share(k: int, n: int) -> dict[str, Any]:
    share = wilson(k, n)
    return {"k": k, "n": n, "rate": share.rate if n else None, "low": share.low, "high": share.high}


def count_failures(results: Iterable[EpisodeResult]) -> dict[str, Any]:
    """Count how episodes failed.

    Returns:
        "count": label -> episodes, with "unlabeled" for failures from before there were labels. Each class of
        failures.py: its share of the `n` failures that have a class, in [0, 1] with a Wilson 95 % interval; the rate is
        None if there are none.
    """
    failed = ["crashed" if r.error else r.failure for r in results if not r.entire_once]
    count = {label: failed.count(label) for label in LABELS} | {"unlabeled": failed.count("")}
    n = sum(count[label] for label in CLASS_OF)
    shares = {
        kind: _share(sum(count[label] for label, label_class in CLASS_OF.items() if label_class == kind), n)
        for kind in get_args(FailureClass)
    }
    return {"count": count, **shares}


def write(
    folder: Path, results: Sequence[EpisodeResult], protocol: Protocol, *, policy: str, run: str | None = None
) -> dict[str, Any]:
    """Write episodes.parquet and results.json; arguments and result as of `summarize`."""
    summary = summarize(results, protocol, policy=policy, run=run)
    write_parquet(folder / "episodes.parquet", results)
    write_json(folder / "results.json", summary)
    return summary


def crashes(results: Iterable[EpisodeResult]) -> list[str]:
    """One line for each reason of crashes, the most frequent first."""
    reasons = Counter(result.error for result in results if result.error)
    return [
        f"{count} episodes crashed and are counted as failures: {reason}" for reason, count in reasons.most_common()
    ]


def metrics(summary: dict[str, Any]) -> dict[str, float]:
    """The numbers of a summary as flat metrics, e.g. "evaluate/put_carrot_on_plate/standard/entire".

    "evaluate/failures/<label>" is the share of all episodes that failed in this way.
    """
    flat = {f"evaluate/{key}": summary[key] for key in ("avg_partial", "avg_entire", "avg_all", "errors", "seconds")}
    for task, row in summary["tasks"].items():
        for scenario, score in row.items():
            flat |= {f"evaluate/{task}/{scenario}/{kind}": score[kind]["rate"] for kind in ("partial", "entire")}
    by_sentence = summary.get("sentence", {})
    flat |= {f"evaluate/{kind}": by_sentence[kind]["rate"] for kind in by_sentence if by_sentence[kind]["n"]}
    episodes = sum(score["n"] for row in summary["tasks"].values() for score in row.values())
    return flat | {f"evaluate/failures/{label}": k / episodes for label, k in summary["failures"]["count"].items()}


def write_parquet(path: Path, results: Iterable[EpisodeResult]) -> None:
    """Write one row per episode; columns are the fields of `Cell` and `EpisodeResult`."""
    rows = [_flat(result) for result in results]
    with storage.atomic_write(path) as here:
        pq.write_table(pa.Table.from_pylist(rows), here)


def _flat(result: EpisodeResult) -> dict[str, Any]:
    values = asdict(result)
    return {**values.pop("cell"), **values}


def append(path: Path, results: Iterable[EpisodeResult]) -> None:
    """Append results to a JSON-lines file; they are stored when this returns."""
    logs.append(path, "".join(json.dumps(_flat(result)) + "\n" for result in results))


def stored(path: Path) -> dict[Cell, EpisodeResult]:
    """Read the results that earlier runs of the same command appended; a truncated line is removed, and its cell is run
    again."""
    if not logs.exists(path):
        return {}
    text = logs.read(path).decode()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        logs.rewrite(path, whole.encode())
    results = [_deep(json.loads(line)) for line in whole.splitlines()]
    return {result.cell: result for result in results}


def _deep(row: dict[str, Any]) -> EpisodeResult:
    cell = Cell(**{field.name: row.pop(field.name) for field in fields(Cell) if field.name in row})
    return EpisodeResult(cell=cell, **row)
