"""Reports how runs failed: counts of the failure labels of tap_ray/evaluate/failures.py and of their two classes, as
text and as table rows."""

from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Sequence

from tap_ray.compare.reading import Result
from tap_ray.compare.tables import short
from tap_ray.media.text_table import grid
from tap_ray.metrics import Interval, wilson

RARE = ("crashed", "unlabeled")
"""Labels that get a column only if some episode has them."""
RULE = "Failures are labeled by rules from the state of the simulator, not by a person."


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How the episodes of one run, or of some of its cells, failed."""

    name: str
    num_episodes: int
    count: Mapping[str, int]
    """Label -> episodes."""
    share: Mapping[str, Interval]
    """Class -> its share of the failures that have a class, with a Wilson 95 % interval; NaN if no failure has a
    class."""

    @property
    def num_failed(self) -> int:
        """Number of episodes that failed."""
        return sum(self.count.values())


def of_scenario(result: Result, scenario: str) -> Failures:
    """A run's failures in one scenario, all tasks together."""
    return _pool(result, result.label, [row[scenario] for row in result.tasks.values()])


def of_task(result: Result, task: str, scenario: str) -> Failures:
    """A run's failures in one task."""
    return _pool(result, short(task), [result.tasks[task][scenario]])


def _pool(result: Result, name: str, entries: Sequence[Mapping[str, Any]]) -> Failures:
    count: dict[str, int] = {}
    for entry in entries:
        label_counts = entry.get("failures", {}).get("count") or {"unlabeled": entry["n"] - entry["entire"]["k"]}
        for label, k in label_counts.items():
            count[label] = count.get(label, 0) + k
    classes = result.failure_class
    n = sum(count.get(label, 0) for label in classes)
    share = {
        kind: wilson(sum(count.get(label, 0) for label, label_class in classes.items() if label_class == kind), n)
        for kind in sorted(set(classes.values()))
    }
    return Failures(name=name, num_episodes=sum(e["n"] for e in entries), count=count, share=share)


def labels_of(rows: Iterable[Failures], failure_class: Mapping[str, str]) -> list[str]:
    """Labels that get a column, class by class, then those of RARE that occur."""
    rows = list(rows)
    ordered = sorted(failure_class, key=failure_class.__getitem__)
    return ordered + [label for label in RARE if any(row.count.get(label) for row in rows)]


def failure_table(result: Result) -> str:
    """A run's failures for a terminal: a row for each task in the first scenario, then for each scenario."""
    first, *others = result.scenarios
    rows = [of_task(result, task, first) for task in result.tasks]
    totals = [of_scenario(result, scenario) for scenario in (first, *others)]
    labels = labels_of(totals, result.failure_class)
    named = [*(row.name for row in rows), *(f"all, {scenario}" for scenario in (first, *others))]
    lines = [
        (name, str(row.num_failed), *(str(row.count.get(label, 0)) for label in labels), str(row.num_episodes))
        for name, row in zip(named, [*rows, *totals], strict=True)
    ]
    table = grid(["failed", *(words(label) for label in labels)], lines)
    return f"how episodes failed. {RULE}\n{table}\n{_share_text(totals[0])}".rstrip()


def _share_text(row: Failures) -> str:
    parts = [f"{kind} {percent(s)} ({span(s)})" for kind, s in row.share.items() if s.rate == s.rate]
    return f"share of these failures, Wilson 95 %: {', '.join(parts)}" if parts else ""


def words(label: str) -> str:
    """A label as words, e.g. for a table."""
    return label.replace("_", " ")


def percent(share: Interval) -> str:
    """A share as text, e.g. "62 %"; a dash for NaN."""
    return f"{100 * share.rate:.0f} %" if share.rate == share.rate else "-"


def span(share: Interval) -> str:
    """An interval as text, in percent."""
    return f"{100 * share.low:.0f}-{100 * share.high:.0f}"


def page_rows(rows: Sequence[Failures], labels: Sequence[str], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Table rows for the HTML page: failed episodes, each label and the share of each class; every cell has a second
    line in small print."""
    made = []
    for row in rows:
        cells = [_cell(row.num_failed, row.num_episodes)]
        cells += [_cell(row.count.get(label, 0), row.num_failed) for label in labels]
        shares = [row.share.get(kind, wilson(0, 0)) for kind in kinds]
        cells += [{"value": percent(s), "interval": span(s) if s.rate == s.rate else ""} for s in shares]
        made.append({"label": row.name, "n": row.num_episodes, "cells": cells})
    return made


def _cell(k: int, n: int) -> dict[str, str]:
    return {"value": str(k), "interval": f"{100 * k / n:.0f} %" if n else ""}
