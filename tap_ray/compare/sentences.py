"""Reports how often a run followed the instruction in mixed scenes, as a text table."""

from typing import Any, Iterable, Mapping

from tap_ray.compare.failures import percent, span
from tap_ray.compare.reading import Result
from tap_ray.compare.tables import short
from tap_ray.media.text_table import grid
from tap_ray.metrics import wilson

RULE = (
    "whose object was moved first, in scenes of two tasks. Followed: that of the instructed task, of the episodes "
    "that moved either (50 % for a policy that ignores the sentence); wrong object: that of the other task, of all "
    "episodes. Wilson 95 % intervals, as if the two episodes of a scene were independent."
)


def pooled(counts: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """The sums of counts {"k", "n"}: how many of how many episodes."""
    each = [(count["k"], count["n"]) for count in counts]
    return sum(k for k, _ in each), sum(n for _, n in each)


def sentence_table(result: Result) -> str:
    """A row for each task in the first scenario, then for each scenario; "" without mixed scenes."""
    first, *others = result.scenarios
    rows = {short(task): [row[first]] for task, row in result.tasks.items()}
    rows |= {f"all, {name}": [row[name] for row in result.tasks.values()] for name in (first, *others)}
    if not all("sentence" in entry for entries in rows.values() for entry in entries):
        return ""
    lines = []
    for name, entries in rows.items():
        cells = [name]
        for kind in ("followed", "wrong_object"):
            k, n = pooled(entry["sentence"][kind] for entry in entries)
            cells += [f"{k}/{n}", percent(wilson(k, n)), span(wilson(k, n))]
        lines.append(tuple(cells))
    return f"\n\n{RULE}\n" + grid(["followed", "", "95 %", "wrong object", ""], lines, last="95 %")
