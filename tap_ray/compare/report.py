"""Writes one self-contained HTML page that compares runs: no network access, light and dark mode, readable on a
phone."""

import base64
import json
from pathlib import Path
from typing import Any, Sequence

from jinja2 import Environment
from markupsafe import Markup

from tap_ray import storage
from tap_ray.compare import failures, page, plots, tables
from tap_ray.compare.reading import Result, read_runs

REPORT = "compare.html"
"""Name of the page in a folder."""
MAX_VIDEO_BYTES = 4_000_000
"""Largest video that is embedded, bytes; the page gives the path of a larger one."""


def write(runs: Sequence[Path | str], out: Path | str) -> Path:
    """Compare runs and write the page.

    Args:
        runs: evaluation folders, all of one protocol; training folders may be included for their learning curves.
        out: the HTML file, or a folder, for `REPORT` in it.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: a folder is missing or damaged, or the protocols differ (both are named).
        DataError: the protocols are the same but the cells differ.
        StorageError: the page cannot be written.
    """
    results, curves = read_runs(runs)
    # Everything that comes from files passes through autoescape; only our own SVG and CSS are trusted.
    environment = Environment(autoescape=True, trim_blocks=True)
    html = environment.from_string(page.TEMPLATE).render(
        title="Comparison of " + _counted(len(results), "policy", "policies") if results else "Learning curves",
        style=Markup(page.STYLE),
        **_of_results(results),
        curves=Markup(plots.learning_curves(curves, [result.label for result in results])),
        sources=[(item.label, item.path) for item in (*results, *curves)],
    )
    path = storage.to_path(out)
    path = path if path.suffix == ".html" else path / REPORT
    return save(path, html)


def _of_results(results: Sequence[Result]) -> dict[str, Any]:
    """The template's variables that need an evaluation; empty without one."""
    if not results:
        return {}
    scenarios, protocol = results[0].scenarios, results[0].protocol
    headings = tables.columns(results)
    return {
        "protocol": protocol,
        "protocol_json": json.dumps(protocol, indent=2),
        "num_cells": len(results[0].episodes),
        "cards": [_card(result, index) for index, result in enumerate(results)],
        "headings": headings,
        "blocks": [{"scenario": scenario, "rows": _rows(tables.our_rows(results, scenario))} for scenario in scenarios],
        "bars": Markup(plots.success_bars(results, scenarios[0])),
        "scenarios": scenarios,
        "scenario_columns": tables.scenario_columns(results),
        "scenario_rows": _rows(tables.scenario_rows(results)),
        "drop_rule": tables.DROP_RULE,
        "drop_columns": [name for name in scenarios if name != tables.STANDARD],
        "drop_rows": _rows(tables.drop_rows(results)),
        "paper_title": tables.PAPER_TITLE,
        "paper": _plain(tables.paper_rows(headings)),
        "paper_robustness_title": tables.PAPER_ROBUSTNESS_TITLE,
        "paper_robustness": _plain(tables.paper_robustness_rows(tables.scenario_columns(results))),
        "robustness": Markup(plots.robustness_bars(results)) if len(scenarios) > 1 else "",
        **_of_failures(results),
        "tests": [vars(test) | {"p_text": tables.p_text(test.p_value)} for test in tables.comparisons(results)],
        "cost_headings": tables.cost_headings(results),
        "costs": tables.cost_rows(results),
        "videos": _videos(results),
    }


def _of_failures(results: Sequence[Result]) -> dict[str, Any]:
    """The template's variables for how runs failed; empty if no failure has a label."""
    classes = next((result.failure_class for result in results if result.failure_class), {})
    if not classes:
        return {}
    first, *others = results[0].scenarios
    wholes = {scenario: [failures.of_scenario(result, scenario) for result in results] for scenario in (first, *others)}
    labels = failures.labels_of([row for rows in wholes.values() for row in rows], classes)
    kinds = sorted(set(classes.values()))
    details = {
        tables.short(task): [failures.of_task(result, task, first) for result in results] for task in results[0].tasks
    }
    details |= {scenario: wholes[scenario] for scenario in others}

    def rows(found: Sequence[failures.Failures]) -> list[dict[str, Any]]:
        made = failures.page_rows(found, labels, kinds)
        return [
            row | {"label": result.label, "color": plots.color(i)}
            for i, (row, result) in enumerate(zip(made, results, strict=True))
        ]

    return {
        "failure_rule": failures.RULE,
        "failure_headings": ["failed", *(failures.words(label) for label in labels), *kinds],
        "failure_rows": rows(wholes[first]),
        "failure_bars": Markup(plots.failure_bars(wholes[first], labels, classes)),
        "failure_details": [{"name": name, "rows": rows(found)} for name, found in details.items()],
    }


def _card(result: Result, index: int) -> dict[str, str]:
    """The headline number of a run: its entire success in the first scenario."""
    average = result.average(result.scenarios[0], "entire")
    interval = f"{100 * average.low:.1f}-{100 * average.high:.1f}"
    return {
        "label": result.label,
        "scenario": result.scenarios[0],
        "color": plots.color(index),
        "rate": f"{100 * average.rate:.1f}",
        "interval": interval,
    }


def _rows(rows: Sequence[tables.Row]) -> list[dict[str, Any]]:
    """Rows of a table as the template takes them."""
    return [
        {
            "label": row.label,
            "n": row.n,
            "color": plots.color(index),
            "cells": [{"value": v, "interval": i} for v, i in zip(row.values, row.intervals, strict=True)],
        }
        for index, row in enumerate(rows)
    ]


def _plain(rows: Sequence[tables.Row]) -> list[dict[str, Any]]:
    """Rows without intervals, as the template takes them."""
    return [{"label": row.label, "values_": row.values, "n": row.n} for row in rows]


def _videos(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The runs' videos, those of one task and scenario beside each other."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for video in embedded_videos(result.path):
            groups.setdefault(video["name"], []).append({**video, "label": result.label})
    return [{"name": name, "videos": videos} for name, videos in sorted(groups.items())]


def embedded_videos(run: Path) -> list[dict[str, Any]]:
    """An evaluation's videos: "name", "path" and "data" in base64, empty for one too large to embed."""
    found = []
    for path in sorted((run / "videos").glob("*.mp4")):
        small = path.stat().st_size <= MAX_VIDEO_BYTES
        data = base64.b64encode(storage.read(path)).decode() if small else ""
        found.append({"name": path.stem, "path": path, "data": data})
    return found


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def save(path: Path, html: str) -> Path:
    """Write a page so that a reader sees the old or the whole new one."""
    storage.make_folder(path.parent)
    storage.write(path, html.encode())
    return path
