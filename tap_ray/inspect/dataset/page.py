"""Renders the HTML page of an inspection: one file, no network access, light and dark mode, results in words and not in
colors alone."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

from tap_ray.compare import page as common
from tap_ray.inspect.dataset.check import Check

STYLE = """
nav table { min-width: 0; } nav td, nav th { white-space: normal; text-align: left; vertical-align: top; }
nav td:first-child, nav th:first-child { position: static; min-width: 0; overflow-wrap: normal; }
.mark { display: inline-block; border-radius: 4px; padding: 0 .5em; font-size: .82rem; font-weight: 600;
  white-space: nowrap; border: 1.5px solid; }
.good { color: #2f7d4f; } .look { color: #a8641a; } .unfit { color: #b13a37; } .unknown { color: var(--soft); }
@media (prefers-color-scheme: dark) {
  .good { color: #6fc791; } .look { color: #e9a95d; } .unfit { color: #f08a86; } }
.sections { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 0 2.5rem; }
section > p::first-letter, nav td:last-child::first-letter { text-transform: uppercase; }
section { min-width: 0; border-top: 1px solid var(--line); margin-top: 1.6rem; } section h2 { margin: 1rem 0 .3rem; }
.strip img { width: 100%; max-width: 60rem; image-rendering: pixelated; display: block; border-radius: 4px; }
.strip { margin: .6rem 0; } figure svg { min-width: 22rem; max-width: 42rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-variant-numeric: tabular-nums;
  font-size: .88rem; margin: .4rem 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""
CLASSES = {"good": "good", "look at this": "look", "not fit": "unfit", "not known": "unknown"}

TEMPLATE = (
    common.HEAD
    + """<main>
<h1>{{ title }}</h1>
<p class="soft">{{ overview }}</p>
<nav aria-label="Checks"><table>
<caption>{{ summary }}</caption>
<thead><tr><th scope="col">check</th><th scope="col">result</th><th scope="col">what was found</th></tr></thead>
<tbody>{% for check in checks %}<tr><td><a href="#{{ check.id }}">{{ check.name }}</a></td>
<td><span class="mark {{ check.css }}">{{ check.kind }}</span></td><td>{{ check.text }}</td></tr>{% endfor %}</tbody>
</table></nav>
{% if sheet %}<figure class="strip"><img src="{{ sheet.src }}" alt="{{ sheet.alt }}">
<figcaption>{{ sheet.alt }}</figcaption></figure>{% endif %}
<div class="sections">
{% for check in checks %}
<section id="{{ check.id }}" aria-labelledby="{{ check.id }}-head">
<h2 id="{{ check.id }}-head">{{ check.name }} <span class="mark {{ check.css }}">{{ check.kind }}</span></h2>
<p>{{ check.text }}.</p>
{% if check.svg %}<figure><div class="scroll">{{ check.svg }}</div><figcaption>{{ check.caption }}</figcaption>
</figure>{% endif %}
{% for strip in check.strips %}<figure class="strip"><img src="{{ strip.src }}" alt="{{ strip.alt }}">
<figcaption>{{ strip.alt }}</figcaption></figure>{% endfor %}
{% if check.numbers %}<details{% if check.kind != "good" %} open{% endif %}><summary>numbers</summary>
<dl>{% for name, value in check.numbers %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl></details>{% endif %}
<p class="soft">Threshold: {{ check.threshold }}.</p>
</section>
{% endfor %}
</div>
{% if explorers %}<section id="explorers" aria-labelledby="explorers-head">
<h2 id="explorers-head">By explorer</h2>
<div class="scroll"><table><thead><tr>{% for name in explorers.head %}<th scope="col">{{ name }}</th>{% endfor %}</tr>
</thead><tbody>{% for row in explorers.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
<dl>{% for name, text in explorers.words %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
{% for svg in explorers.svgs %}<figure><div class="scroll">{{ svg }}</div></figure>{% endfor %}
</section>{% endif %}
<section id="source" aria-labelledby="source-head"><h2 id="source-head">Where this comes from</h2>
<dl>{% for name, text in sources %}<dt>{{ name }}</dt><dd><code>{{ text }}</code></dd>{% endfor %}</dl></section>
</main>
</body>
</html>
"""
)


def render(
    title: str,
    checks: Sequence[Check],
    *,
    overview: str,
    summary: str,
    plots: Mapping[str, tuple[str, str]],
    strips: Mapping[str, Sequence[tuple[np.ndarray, str]]],
    more: Mapping[str, Any],
) -> str:
    """Render the page.

    Args:
        title: heading of the page.
        checks: the results of the checks.
        overview: a sentence about the dataset.
        summary: a sentence about how many checks had which result.
        plots: name of a check -> SVG and its caption.
        strips: name of a check -> (Y, X, 3) uint8 images, each with a caption.
        more: "sheet", "explorers", "sources" of the template.
    """
    shown = [
        {
            "id": check.name.replace(" ", "-"),
            "name": check.name,
            "kind": check.kind,
            "css": CLASSES[check.kind],
            "text": check.text,
            "threshold": check.threshold,
            "numbers": [(name.replace("_", " "), _as_text(value)) for name, value in check.numbers.items()],
            "svg": Markup(plots.get(check.name, ("", ""))[0]),
            "caption": plots.get(check.name, ("", ""))[1],
            "strips": [image(rgb, text) for rgb, text in strips.get(check.name, ())],
        }
        for check in checks
    ]
    # What comes from files passes through autoescape; only our own SVG and CSS are trusted.
    environment = Environment(autoescape=True, trim_blocks=True)
    style = Markup(common.STYLE + STYLE)
    return environment.from_string(TEMPLATE).render(
        title=title, style=style, checks=shown, overview=overview, summary=summary, **more
    )


def image(rgb: np.ndarray, text: str) -> dict[str, str]:
    """An image for the template: a data URI, and its caption."""
    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=85)
    return {"src": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), "alt": text}


def _as_text(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} ({count})" for name, count in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_as_text, value)) or "none"
    return str(value)
