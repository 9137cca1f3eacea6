"""The HTML page of a comparison, as a Jinja template (rendered with autoescape) and its style."""

STYLE = """
:root { --ink: #1d2430; --soft: #5d6878; --grid: #8884; --paper: #fdfdfc; --card: #f3f4f6; --line: #d9dde3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b4; --grid: #8886; --paper: #14181f; --card: #1d232c; --line: #323a46; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 48rem; } .soft, caption, figcaption { color: var(--soft); font-size: .88rem; }
code { font-size: .88em; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { background: var(--card); border-left: 4px solid; border-radius: 6px; padding: .6rem .8rem; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; min-width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); white-space: normal; min-width: 8rem; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--line); }
td small { display: block; color: var(--soft); font-size: .78rem; }
.paper td, .paper th { color: var(--soft); } .band th:first-child { background: var(--card); font-weight: 600; }
.tight thead th { white-space: normal; vertical-align: bottom; }
.sure { font-weight: 700; }
figure { margin: .5rem 0; } figure svg { width: 100%; min-width: 38rem; max-width: 60rem; height: auto; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: .75rem; }
.videos figure { margin: 0; background: var(--card); border-radius: 6px; padding: .5rem; }
video { width: 100%; border-radius: 4px; display: block; background: #000; }
pre { overflow-x: auto; background: var(--card); padding: .75rem; border-radius: 6px; font-size: .8rem; }
summary { cursor: pointer; color: var(--soft); } .dot { display: inline-block; width: .7em; height: .7em;
  border-radius: 50%; margin-right: .4em; }
@media (max-width: 40rem) { body { font-size: 15px; } th, td { padding: .3rem .4rem; } }
"""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{% if running %}<meta http-equiv="refresh" content="{{ refresh_s }}">{% endif %}
<title>tap_ray: {{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
"""
"""The head of every HTML page (comparison, sweep, inspection). A page with `running` set reloads itself."""

TEMPLATE = (
    HEAD
    + """<h1>{{ title }}</h1>
{% if cards %}
<p class="soft">{{ num_cells }} cells each (task, scenario, initial state, seed), the same for every run; protocol
<code>{{ protocol.hash }}</code>. Success counts when it held at any step of the episode.</p>
<div class="cards">{% for card in cards %}
<div class="card" style="border-color: {{ card.color }}"><span>{{ card.label }}</span>
<b>{{ card.rate }} %</b>
<span class="soft">entire success, {{ card.scenario }}, 95 % interval {{ card.interval }}</span></div>{% endfor %}
</div>
{% endif %}
{% macro rows_of(rows) %}{% for row in rows %}
<tr><td><span class="dot" style="background: {{ row.color }}"></span>{{ row.label }}</td>
{%- for cell in row.cells %}<td>{{ cell.value }}<small>{{ cell.interval }}</small></td>{% endfor -%}
<td>{{ row.n }}</td></tr>{% endfor %}{% endmacro %}
{% macro plain_of(rows) %}{% for row in rows %}<tr><td>{{ row.label }}</td>
{%- for value in row.values_ %}<td>{{ value }}</td>{% endfor -%}
<td>{{ row.n }}</td></tr>
{% endfor %}{% endmacro %}
{% macro head_of(names) %}<thead><tr><th>run</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}<th>n</th></tr>
</thead>{% endmacro %}
{% if blocks %}<h2>Success: {{ blocks[0].scenario }}</h2>
<div class="scroll"><table>
<caption>Percent, partial/entire; below each its Wilson 95 % interval. n: episodes per task.</caption>
{{ head_of(headings) }}
<tbody>{{ rows_of(blocks[0].rows) }}</tbody>
<tbody class="paper"><tr class="band"><th colspan="{{ headings|length + 2 }}">{{ paper_title }}</th></tr>
{{ plain_of(paper) }}</tbody></table></div>
<figure><div class="scroll">{{ bars }}</div>
<figcaption>Bars: successes in percent. Whiskers: Wilson 95 % intervals.</figcaption></figure>{% endif %}
{% if failure_rows %}<h2>How they failed: {{ blocks[0].scenario }}</h2>
<p class="soft">{{ failure_rule }} Execution: the gripper went to the right object and the motion failed. Semantic: it
moved another object, or never came near the right one.</p>
<div class="scroll"><table class="tight">
<caption>Episodes; below each its share of the failed ones (of "failed": of all). Last columns: shares of the two
classes, below each its Wilson 95 % interval. n: episodes.</caption>
{{ head_of(failure_headings) }}
<tbody>{{ rows_of(failure_rows) }}</tbody></table></div>
<figure><div class="scroll">{{ failure_bars }}</div>
<figcaption>All episodes of a run; what is left of a bar succeeded. Browns: execution, blues: semantic.</figcaption>
</figure>
{% for detail in failure_details %}<details><summary>{{ detail.name }}</summary>
<div class="scroll"><table class="tight">{{ head_of(failure_headings) }}
<tbody>{{ rows_of(detail.rows) }}</tbody></table></div></details>
{% endfor %}{% endif %}
{% if robustness %}<h2>Robustness</h2>
<div class="scroll"><table>
<caption>Avg-P/Avg-E in each scenario, on the same initial states; n: episodes per scenario.</caption>
{{ head_of(scenario_columns) }}<tbody>{{ rows_of(scenario_rows) }}</tbody>
<tbody class="paper"><tr class="band"><th colspan="{{ scenario_columns|length + 2 }}">{{ paper_robustness_title }}</th>
</tr>{{ plain_of(paper_robustness) }}</tbody></table></div>
{% if drop_rows %}<div class="scroll"><table><caption>Drop of {{ drop_rule }}.</caption>
{{ head_of(drop_columns) }}<tbody>{{ rows_of(drop_rows) }}</tbody></table></div>{% endif %}
<figure><div class="scroll">{{ robustness }}</div></figure>
{% for block in blocks[1:] %}<details><summary>Every task: {{ block.scenario }}</summary>
<div class="scroll"><table>{{ head_of(headings) }}<tbody>{{ rows_of(block.rows) }}</tbody></table></div></details>
{% endfor %}{% endif %}
{% macro tests_of(rows) %}<div class="scroll"><table>
<thead><tr><th>first | second</th><th>success</th><th>cells</th><th>n</th>
<th>only first</th><th>only second</th><th>p</th></tr></thead><tbody>{% for test in rows %}
<tr{% if test.p_value < 0.05 %} class="sure"{% endif %}><td>{{ test.first }} | {{ test.second }}</td>
<td>{{ test.kind }}</td><td>{{ test.scope }}</td><td>{{ test.num_cells }}</td><td>{{ test.only_first }}</td>
<td>{{ test.only_second }}</td><td>{{ test.p_text }}</td></tr>{% endfor %}
</tbody></table></div>{% endmacro %}
{% if tests %}<h2>Paired differences</h2>
<p class="soft">How many cells only one of two runs solved; exact two-sided McNemar test, bold below 0.05. p is not
corrected for the number of tests ({{ tests|length }} in all): one in twenty is below 0.05 by chance.</p>
{{ tests_of(tests|selectattr("scope", "equalto", tests[0].scope)|list) }}
<details><summary>By task (scenario {{ scenarios[0] }})
{%- if scenarios|length > 1 %} and by scenario{% endif %}</summary>
{{ tests_of(tests|rejectattr("scope", "equalto", tests[0].scope)|list) }}</details>{% endif %}
{% if curves %}<h2>Learning curves</h2>
<figure><div class="scroll">{{ curves }}</div>
<figcaption>What each training run logged; a policy's color is that of its row above.</figcaption>
</figure>{% endif %}
{% if costs %}<h2>Beside success</h2>
<div class="scroll"><table><thead><tr>{% for heading in cost_headings %}<th>{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in costs %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>{% endif %}
{% if videos %}<h2>Videos</h2>
{% for group in videos %}<h3>{{ group.name }}</h3><div class="videos">{% for video in group.videos %}
<figure>{% if video.data %}<video controls loop muted playsinline preload="metadata"
 src="data:video/mp4;base64,{{ video.data }}"></video>{% endif %}
<figcaption>{{ video.label }}{% if not video.data %}: too large to embed, see <code>{{ video.path }}</code>{% endif %}
</figcaption></figure>{% endfor %}</div>{% endfor %}{% endif %}
<h2>Where this comes from</h2>
<div class="scroll"><table><thead><tr><th>run</th><th>folder</th></tr></thead>
<tbody>{% for label, path in sources %}<tr><td>{{ label }}</td><td><code>{{ path }}</code></td></tr>{% endfor %}</tbody>
</table></div>
{% if protocol %}<details><summary>Protocol</summary><pre>{{ protocol_json }}</pre></details>{% endif %}
</body>
</html>
"""
)
