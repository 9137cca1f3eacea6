"""Writes a sweep's page: one self-contained HTML file that reloads itself while the sweep runs."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

from jinja2 import Environment
from markupsafe import Markup

from tap_ray import storage
from tap_ray.compare import page
from tap_ray.compare.report import embedded_videos, save
from tap_ray.sweep import plots
from tap_ray.sweep.tables import HEADINGS, METRICS, TrialRow, best, label, points, short_names, show
from tap_ray.training import session

PAGE = "sweep.html"
"""Name of the page in a sweep's run folder."""
REFRESH_S = 10
"""How often the page of a running sweep reloads itself, s."""

Curve = list[tuple[float, float]]
"""(step, value) pairs of a metric that a trial has logged."""
Curves = dict[str, Curve]
"""Id of a trial -> its curve."""

TEMPLATE = (
    page.HEAD
    + """<h1>{{ title }}</h1>
<p class="soft">{{ num_ended }} of {{ rows|length }} trials have ended
{%- if running %}; this page reloads itself every {{ refresh_s }} s{% endif %}.
{% if dashboard %}Ray's dashboard: <a href="{{ dashboard }}">{{ dashboard }}</a>.{% endif %}</p>
{% if now %}<ul>{% for text in now %}<li>{{ text }}</li>{% endfor %}</ul>{% endif %}
{% if top %}<div class="cards">{% for card in top %}<div class="card" style="border-color: {{ card.color }}">
<span>{{ card.label }}</span><b>{{ card.value }} %</b><span class="soft">{{ card.note }}</span></div>{% endfor %}</div>
{% endif %}
{% if curve %}<h2>Success over {{ curve_axis }}</h2><figure><div class="scroll">{{ curve }}</div>
<figcaption>Small dots: Avg-All of each seed; whiskers: Student's 95 % interval of their mean. Bands: Wilson 95 %
intervals of partial and entire success, all seeds' episodes together (they share their cells, so the bands are
somewhat too narrow).</figcaption></figure>{% endif %}
{% if heat %}<h2>Two axes</h2><figure><div class="scroll">{{ heat }}</div>
<figcaption>Mean Avg-All over seeds.</figcaption></figure>{% endif %}
{% if validation %}<h2>Held-out demonstrations</h2><figure><div class="scroll">{{ validation }}</div>
<figcaption>A line a trial; dashed: stopped early.</figcaption></figure>{% endif %}
{% if parallel %}<h2>All trials</h2><figure><div class="scroll">{{ parallel }}</div>
<figcaption>A line a trial; the lighter, the higher it ends.</figcaption></figure>{% endif %}
{% if point_rows %}<h2>Means over seeds</h2><div class="scroll"><table>
<caption>Percent. Below Avg-All: Student's 95 % interval over seeds; below Avg-P and Avg-E: Wilson 95 % intervals of all
seeds' episodes. n: seeds.</caption>
<thead><tr>{% for name in point_head %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in point_rows %}<tr>{% for cell in row %}<td>{{ cell[0] }}<small>{{ cell[1] }}</small></td>
{%- endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}
<h2>Trials</h2><div class="scroll"><table>
<thead><tr>{% for name in trial_head %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in trial_rows %}<tr>{% for cell in row %}<td>{{ cell[0] }}<small>{{ cell[1] }}</small></td>
{%- endfor %}</tr>{% endfor %}</tbody></table></div>
{% if videos %}<h2>The best policy: {{ best_label }}</h2><div class="videos">{% for video in videos %}
<figure>{% if video.data %}<video controls loop muted playsinline preload="metadata"
 src="data:video/mp4;base64,{{ video.data }}"></video>{% endif %}
<figcaption>{{ video.name }}{% if not video.data %}: too large to embed, see <code>{{ video.path }}</code>{% endif %}
</figcaption></figure>{% endfor %}</div>{% endif %}
<h2>Where this comes from</h2>
<div class="scroll"><table><tbody>{% for name, text in sources %}<tr><td>{{ name }}</td><td><code>{{ text }}</code></td>
</tr>{% endfor %}</tbody></table></div>
<details><summary>The sweep</summary><pre>{{ plan }}</pre></details>
</body>
</html>
"""
)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the page shows besides the trials."""

    title: str
    plan: Mapping[str, Any]
    """Contents of the sweep's file."""
    metric: str = "avg_all"
    """Metric by which the trials are ranked."""
    validation: str = ""
    """Metric of early stopping; empty if there is none."""
    dashboard: str = ""
    """Address of Ray's dashboard; empty if it is not running."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Name -> text, e.g. where data, registry and TensorBoard files are."""


def write(folder: Path, rows: Sequence[TrialRow], frame: Frame, *, running: bool) -> Path:
    """Write the page of a sweep.

    Args:
        folder: the sweep's run folder.
        rows: its ledger.
        frame: what the page shows besides the trials.
        running: whether the page reloads itself and may show trials whose files are being written.

    Returns:
        The path of the page.

    Raises:
        StorageError: the page cannot be written.
    """
    top, curves = best(rows, frame.metric), _curves(rows, frame.validation)
    ended = [row for row in rows if row.state not in ("waiting", "running")]
    html = (
        Environment(autoescape=True, trim_blocks=True)
        .from_string(TEMPLATE)
        .render(
            title=frame.title,
            style=Markup(page.STYLE),
            running=running,
            refresh_s=REFRESH_S,
            rows=rows,
            num_ended=len(ended),
            dashboard=frame.dashboard if running else "",
            now=[f"{row.id} ({label(row.values)}): {row.stage}" for row in rows if row.state == "running"],
            top=_cards(rows, frame.metric),
            best_label=label(top.values) if top else "",
            videos=embedded_videos(storage.to_path(top.runs["evaluate"])) if top and not running else [],
            sources=[*frame.sources.items(), *([("best policy", top.runs["align"])] if top else [])],
            plan=json.dumps(frame.plan, indent=2, default=str),
            **_plots(rows, curves, frame),
            **_tables(rows, curves, frame),
        )
    )
    return save(folder / PAGE, html)


def _plots(rows: Sequence[TrialRow], curves: Curves, frame: Frame) -> dict[str, Any]:
    axes, evaluated = plots.varied(rows), [row for row in rows if row.result]
    if frame.validation:
        last = {id: curve[-1][1] for id, curve in curves.items() if curve}
        scores, heading = {id: value for id, value in last.items() if math.isfinite(value)}, frame.validation
    else:
        scores, heading = {row.id: 100 * (row.result or {})["avg_all"] for row in evaluated}, "Avg-All, %"
    made: dict[str, Any] = {"parallel": Markup(plots.parallel_coordinates(rows, scores, heading))}
    if len(axes) == 1 and evaluated:
        made |= {
            "curve": Markup(plots.budget_curve(rows, axes[0])),
            "curve_axis": short_names(list(rows[0].values))[axes[0]],
        }
    if len(axes) == 2 and evaluated:
        made["heat"] = Markup(plots.heat_map(rows, *axes))
    if frame.validation:
        made["validation"] = Markup(plots.validation_curves(rows, curves, frame.validation))
    return made


def _curves(rows: Sequence[TrialRow], metric: str) -> Curves:
    """The values of a metric that each trial's alignment has logged so far."""
    return {row.id: _curve(row, metric) for row in rows} if metric else {}


def _curve(row: TrialRow, metric: str) -> Curve:
    run = row.runs.get("align")
    lines = session.read_metrics(storage.to_path(run) / session.METRICS) if run else []
    until = row.logged_step if row.state == "stopped" else math.inf
    return [(line["step"], line[metric]) for line in lines if metric in line and line["step"] <= until]


def _cards(rows: Sequence[TrialRow], metric: str) -> list[dict[str, str]]:
    """Cards of the best points, with their seeds."""
    found = sorted(points(rows), key=lambda point: -point.mean(metric))[:4]
    return [
        {
            "label": label(point.values),
            "value": f"{100 * point.mean(metric):.1f}",
            "note": f"{HEADINGS[metric]}, mean of {len(point.rows)} seed{'s' * (len(point.rows) > 1)}",
            "color": plots.color(number),
        }
        for number, point in enumerate(found)
    ]


def _tables(rows: Sequence[TrialRow], curves: Curves, frame: Frame) -> dict[str, Any]:
    names = short_names(list(rows[0].values)) if rows else {}
    heads = list(HEADINGS.values())
    point_rows = []
    for point in points(rows):
        inner = [point.pooled("partial"), point.pooled("entire"), point.over_seeds("avg_all")]
        scores = [
            (f"{100 * point.mean(metric):.1f}", f"{100 * i.low:.0f}-{100 * i.high:.0f}" if i.high > i.low else "")
            for metric, i in zip(METRICS, inner, strict=True)
        ]
        point_rows.append([*((show(value), "") for value in point.values.values()), *scores, (len(point.rows), "")])
    inner_names = [names[axis] for axis in (point_rows and points(rows)[0].values) or ()]
    extra = [frame.validation] if frame.validation else []
    stages = [stage for stage in ("pretrain", "prior", "align", "evaluate") if any(stage in r.seconds for r in rows)]
    return {
        "point_head": [*inner_names, *heads, "n"],
        "point_rows": point_rows,
        "trial_head": ["trial", *names.values(), "state", *extra, *heads, *(f"{stage}, s" for stage in stages)],
        "trial_rows": [_trial_row(row, [curves[row.id]] if extra else [], stages) for row in rows],
    }


def _trial_row(row: TrialRow, extra: Sequence[Curve], stages: Sequence[str]) -> list[tuple[Any, str]]:
    intervals = {"avg_partial": "avg_partial_interval", "avg_entire": "avg_entire_interval"}
    scores = []
    for metric in METRICS:
        span = (row.result or {}).get(intervals.get(metric, ""))
        text = f"{100 * span[0]:.0f}-{100 * span[1]:.0f}" if span else ""
        scores.append((f"{100 * row.result[metric]:.1f}" if row.result else "-", text))
    return [
        (row.id, ""),
        *((show(value), "") for value in row.values.values()),
        (row.state, row.error or row.stage),
        *((f"{curve[-1][1]:.3f}", f"step {curve[-1][0]}") if curve else ("-", "") for curve in extra),
        *scores,
        *((f"{row.seconds[s]:.0f}" if s in row.seconds else "-", _of(row, s)) for s in stages),
    ]


def _of(row: TrialRow, stage: str) -> str:
    """Text: the time of a stage, or that it existed already."""
    if stage in row.worked:
        return f"{row.worked[stage]:.0f} at work"
    return "found" if stage in row.runs and row.state == "done" else ""
