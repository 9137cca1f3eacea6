"""Formats results as text tables: the paper's table for our runs (with the paper's own rows), and paired tests."""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Sequence

import numpy as np

from tap_ray.compare.reading import KINDS, Result
from tap_ray.compare.replaced import HEADING, replaced
from tap_ray.media.text_table import grid
from tap_ray.metrics import Interval, mcnemar, paired_difference

SHORT = ("spoon", "carrot", "stack", "eggplant", "pumpkin")
"""The heading of a task's column is the first of these words that its name contains, otherwise its name."""

PAPER_TITLE = "paper, SIMPLER (numbers of arXiv 2607.02466), another simulator: not comparable"
PAPER_ROWS: dict[str, dict[str, str]] = {
    name: dict(zip(("spoon", "carrot", "stack", "eggplant", "Avg-P", "Avg-E", "Avg-All"), row.split(), strict=True))
    for name, row in {
        "RT-1-X": "4.2/0 16.7/0 0/0 3.3/0 6.05 0.00 3.03",
        "OpenVLA": "4.1/0 33.0/0 12.5/0 8.3/4.1 14.48 1.03 7.75",
        "NORA": "37.5/16.7 48.0/0 41.7/12.5 4.17/0 32.84 7.29 20.06",
        "Octo": "50.0/33.0 50.0/25.0 29.2/0 40.0/23.3 42.30 20.33 31.31",
        "Standard BC": "41.7/33.3 48.0/8.0 37.5/16.7 0/0 31.79 14.50 23.15",
        "TAP-8k": "50.0/37.5 37.5/8.3 58.3/4.2 0/0 36.45 12.50 24.47",
        "TAP-14k": "41.7/33.3 50.0/16.7 83.3/12.5 4.2/0 44.80 15.62 30.21",
        "TAP-20k": "66.7/58.3 50.0/0 58.3/16.7 8.3/8.3 45.82 20.82 33.32",
    }.items()
}
"""As printed in the paper (arXiv 2607.02466): percent, partial/entire, 24 episodes per task."""

PAPER_ROBUSTNESS_TITLE = "paper, real robot, 20 trials each (arXiv 2607.02466), percent: not comparable"
_PAPER_SCENARIOS = ("standard", "initial_state", "distractors", "background", "viewpoint", "average")
PAPER_ROBUSTNESS: dict[str, dict[str, str]] = {
    name: dict(zip(_PAPER_SCENARIOS, row.split(), strict=True))
    for name, row in {
        "scratch, carrot": "20 20 5 0 0 9",
        "TAP, carrot": "40 30 30 25 15 28",
        "NORA, carrot": "65 65 40 10 0 36",
        "scratch, pumpkin": "55 45 5 0 0 21",
        "TAP, pumpkin": "75 75 65 65 25 61",
        "NORA, pumpkin": "85 80 60 55 0 56",
    }.items()
}
"""As printed in the paper (arXiv 2607.02466): success of "carrot on plate" and "push pumpkin left"."""
STANDARD = "standard"
"""The scenario that the drops of the other scenarios are relative to."""
RULE = "percent partial/entire, Wilson 95 % intervals below"
DROP_RULE = "entire success, standard minus scenario, in points; paired 95 % interval, exact McNemar p (not corrected)"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A table row of one policy: for each column the text in `values` and its 95 % interval in `intervals` ("" if there
    is none)."""

    label: str
    values: tuple[str, ...]
    intervals: tuple[str, ...]
    n: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One paired test of two runs on the same cells."""

    first: str
    second: str
    kind: str
    """"partial" or "entire"."""
    scope: str
    """"all cells" of the one scenario, or a scenario's name; else a task, in the first scenario."""
    num_cells: int
    only_first: int
    only_second: int
    p_value: float


def short(task: str) -> str:
    """Heading of a task's column."""
    return next((word for word in SHORT if word in task.lower()), task)


def columns(results: Sequence[Result]) -> list[str]:
    """Headings: the tasks, then the three averages."""
    return [*(short(task) for task in results[0].tasks), "Avg-P", "Avg-E", "Avg-All"]


def our_rows(results: Sequence[Result], scenario: str) -> list[Row]:
    """A row for each run in one scenario: partial/entire per task and averages, percent, with Wilson intervals."""
    return [_row(result, scenario) for result in results]


def _row(result: Result, scenario: str) -> Row:
    pairs = [[result.score(task, scenario, kind) for kind in KINDS] for task in result.tasks]
    partial, entire = (result.average(scenario, kind) for kind in KINDS)
    sizes = sorted({entry[scenario]["n"] for entry in result.tasks.values()})
    values = [f"{_percent(p.rate)}/{_percent(e.rate)}" for p, e in pairs]
    intervals = [f"{_span(p)}/{_span(e)}" for p, e in pairs]
    return Row(
        label=result.label,
        values=(*values, *(_percent(rate) for rate in (partial.rate, entire.rate, (partial.rate + entire.rate) / 2))),
        intervals=(*intervals, _span(partial), _span(entire), ""),
        n="-".join(str(size) for size in sizes),
    )


def scenario_rows(results: Sequence[Result]) -> list[Row]:
    """A row for each run, a column for each of `scenario_columns`: Avg-P/Avg-E, percent, with Wilson intervals.

    The mean over scenarios has no interval: the scenarios share their initial states, so their episodes are not
    independent.
    """
    rows = []
    for result in results:
        pairs = [[result.average(scenario, kind) for kind in KINDS] for scenario in result.scenarios]
        mean = "/".join(_percent(float(np.mean([pair[kind].rate for pair in pairs]))) for kind in (0, 1))
        rows.append(
            Row(
                label=result.label,
                values=(*(f"{_percent(p.rate)}/{_percent(e.rate)}" for p, e in pairs), mean),
                intervals=(*(f"{_span(p)}/{_span(e)}" for p, e in pairs), ""),
                n=str(len(result.episodes) // len(result.scenarios)),
            )
        )
    return rows


def scenario_columns(results: Sequence[Result]) -> list[str]:
    """Headings of `scenario_rows`."""
    return [*results[0].scenarios, "average"]


def drop_rows(results: Sequence[Result]) -> list[Row]:
    """A row for each run, a column for each scenario except the standard one, see DROP_RULE. Empty without the standard
    scenario."""
    rows = []
    for result in results:
        if STANDARD not in result.scenarios or len(result.scenarios) == 1:
            continue
        drops = [_drop(result, scenario) for scenario in result.scenarios if scenario != STANDARD]
        values, intervals = zip(*drops, strict=True)
        n = str(len(result.episodes) // len(result.scenarios))
        rows.append(Row(label=result.label, values=values, intervals=intervals, n=n))
    return rows


def _drop(result: Result, scenario: str) -> tuple[str, str]:
    """The drop of entire success from "standard" to `scenario`, in percentage points, and its interval with the
    p-value."""
    before, after = (result.episodes.xs(name, level="scenario")["entire_once"] for name in (STANDARD, scenario))
    assert before.index.equals(after.index), "an initial state has one seed in all scenarios"
    fall, test = paired_difference(before, after), mcnemar(before, after)
    return _percent(fall.rate), f"{100 * fall.low:.0f}..{100 * fall.high:.0f}, p {p_text(test.p_value)}"


def robustness_rows(result: Result) -> tuple[list[str], list[Row]]:
    """Headings, and a row for each scenario of one run: tasks, averages, and the drop from the standard scenario."""
    headings, rows = columns([result]), [replace(_row(result, name), label=name) for name in result.scenarios]
    for drop in drop_rows([result]):  # one, or none without the standard scenario
        others = zip(drop.values, drop.intervals, strict=True)
        cells = [("", "") if row.label == STANDARD else next(others) for row in rows]
        headings = [*headings, "drop"]
        rows = [
            replace(row, values=(*row.values, value), intervals=(*row.intervals, interval))
            for row, (value, interval) in zip(rows, cells, strict=True)
        ]
    return headings, rows


def paper_robustness_rows(headings: Sequence[str]) -> list[Row]:
    """The paper's own rows under our scenarios; one that it does not have gets a dash."""
    return [
        Row(label=name, values=tuple(row.get(h, "-") for h in headings), intervals=("",) * len(headings), n="20")
        for name, row in PAPER_ROBUSTNESS.items()
    ]


def paper_rows(headings: Sequence[str]) -> list[Row]:
    """The paper's own rows under our headings; a task it does not have gets a dash."""
    return [
        Row(label=name, values=tuple(row.get(h, "-") for h in headings), intervals=("",) * len(headings), n="24")
        for name, row in PAPER_ROWS.items()
    ]


def comparisons(results: Sequence[Result]) -> list[Comparison]:
    """Exact McNemar tests between every two runs: each scenario as a whole, and each task in the first scenario.

    Scenarios are never pooled: they share their initial states, so their cells are not independent of each other.
    """
    found = []
    for first, second in combinations(results, 2):
        scenarios = first.scenarios
        wholes = [("all cells" if len(scenarios) == 1 else scenario, scenario, None) for scenario in scenarios]
        tasks = [(task, scenarios[0], task) for task in first.tasks if len(first.tasks) > 1]
        for scope, scenario, task in (*wholes, *tasks):
            found += [_compare(first, second, kind, scope=scope, scenario=scenario, task=task) for kind in KINDS]
    return found


def _compare(first: Result, second: Result, kind: str, *, scope: str, scenario: str, task: str | None) -> Comparison:
    cells = first.episodes.index
    inside = np.asarray(cells.get_level_values("scenario") == scenario)
    if task is not None:
        inside &= np.asarray(cells.get_level_values("task") == task)
    test = mcnemar(*(result.episodes[f"{kind}_once"].to_numpy()[inside] for result in (first, second)))
    return Comparison(
        first=first.label,
        second=second.label,
        kind=kind,
        scope=scope,
        num_cells=test.num_pairs,
        only_first=test.only_first,
        only_second=test.only_second,
        p_value=test.p_value,
    )


def cost_headings(results: Sequence[Result]) -> tuple[str, ...]:
    """Headings of `cost_rows`; the column of replaced demonstrations only if it is known for one of the results."""
    return (*COST_HEADINGS, *([HEADING] if any(replaced(results)) else []))


def cost_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Further numbers of each run, one for each of `cost_headings`."""
    rows, worth = [], replaced(results)
    for result, text in zip(results, worth, strict=True):
        episodes = result.episodes
        rows.append((
            result.label,
            _percent(float(np.mean(episodes["entire_once"]))),
            _percent(float(np.mean(episodes["entire_end"]))),
            f"{episodes['num_steps'].mean():.1f}",
            f"{episodes['num_clipped'].sum() / max(1, episodes['num_steps'].sum()):.1%}",
            f"{episodes['policy_ms'].mean():.1f}",
            str((episodes["error"] != "").sum()),
            f"{result.seconds:.0f}",
            *([text] if any(worth) else []),
        ))  # fmt: skip
    return rows


COST_HEADINGS = (
    "run",
    "entire, once %",
    "entire, at the end %",
    "steps",
    "actions clipped",
    "policy ms/call",
    "crashed episodes",
    "robot seconds",
)


def text_table(results: Sequence[Result], *, with_paper: bool = True) -> str:
    """The comparison for a terminal: tasks, the paper's rows, scenarios if there are several, paired tests.

    Args:
        results: at least one result, all of one protocol.
        with_paper: whether to add the paper's rows.
    """
    headings, scenarios = columns(results), results[0].scenarios
    several = len(scenarios) > 1
    if several and len(results) == 1:
        blocks = [_robustness_text(results[0])]
    else:
        blocks = [f"{scenarios[0]}: {RULE}\n" + grid(headings, _two_lines(our_rows(results, scenarios[0])))]
    if with_paper:
        blocks.append(PAPER_TITLE + "\n" + grid(headings, _one_line(paper_rows(headings))))
    if several and len(results) > 1:
        blocks += _scenarios_text(results)
    if several and with_paper:
        names = scenario_columns(results)
        blocks.append(PAPER_ROBUSTNESS_TITLE + "\n" + grid(names, _one_line(paper_robustness_rows(names))))
    if tests := comparisons(results):
        headline = tests[0].scope
        lines = [
            (
                f"{t.first} | {t.second}",
                t.kind,
                str(t.only_first),
                str(t.only_second),
                p_text(t.p_value),
                str(t.num_cells),
            )
            for t in tests
            if t.scope == headline
        ]
        blocks.append(
            f"first | second, paired on the same cells ({headline}): number of cells that only one of them solved, "
            "exact McNemar\n" + grid(("success", "only first", "only second", "p"), lines)
        )
    lines = [f"{result.label}: {text}" for result, text in zip(results, replaced(results), strict=True) if text]
    blocks += ["\n".join([f"{HEADING} (Avg-All, {scenarios[0]})", *lines])] if lines else []
    blocks += [
        f"{result.label}: {result.elsewhere} was not read, because it lies in another storage than the evaluation. "
        "Name that run too for its learning curves."
        for result in results
        if result.elsewhere
    ]
    return "\n\n".join(blocks)


def _robustness_text(result: Result) -> str:
    """One run's scenarios, task by task."""
    headings, rows = robustness_rows(result)
    title = f"{result.label}, robustness: {RULE}"
    title += f"\ndrop: {DROP_RULE}" if "drop" in headings else ""
    mean = scenario_rows([result])[0].values[-1]
    return f"{title}\n{grid(headings, _two_lines(rows))}\nmean over scenarios: {mean}"


def _scenarios_text(results: Sequence[Result]) -> list[str]:
    """Several runs' scenarios side by side."""
    blocks = [f"mean over tasks: {RULE}\n" + grid(scenario_columns(results), _two_lines(scenario_rows(results)))]
    if rows := drop_rows(results):
        others = [name for name in results[0].scenarios if name != STANDARD]
        blocks.append(f"drop of {DROP_RULE}\n" + grid(others, _two_lines(rows)))
    return blocks


def _one_line(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [(row.label, *row.values, row.n) for row in rows]


def _two_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [line for row in rows for line in ((row.label, *row.values, row.n), ("", *row.intervals, ""))]


def p_text(p_value: float) -> str:
    """A p-value in two digits; "<0.0001" below that."""
    return "<0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _span(interval: Interval) -> str:
    return f"{100 * interval.low:.0f}-{100 * interval.high:.0f}"
