"""A sweep's tables and page, from a ledger laid out by hand."""

import re
import subprocess
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from tap_ray.sweep import page as sweep_page
from tap_ray.sweep.tables import (
    TrialRow,
    best,
    cost_text,
    label,
    points,
    read_row,
    rows_json,
    short_names,
    text_table,
    write_row,
)  # fmt: skip
from tests.compare.test_report import CHROMIUM, EVIL, FLAGS, Page


def row(number: int, values: dict, partial: int | None = None, entire: int = 0, **more) -> TrialRow:
    """A trial; `partial` and `entire` of 20 episodes succeeded; None: not evaluated."""
    result = None
    if partial is not None:
        rates = {"avg_partial": partial / 20, "avg_entire": entire / 20, "avg_all": (partial + entire) / 40}
        result = {**rates, "k": {"partial": partial, "entire": entire}, "n": 20}
        result |= {"avg_partial_interval": [0.1, 0.9], "avg_entire_interval": [0.1, 0.9], "tasks": {}}
    runs = {"align": "runs/align", "evaluate": "runs/evaluate"} if result else {}
    fields = {"state": "done" if result else "waiting", "runs": runs, **more}
    return TrialRow(id=f"{number:03d}", values=values, result=result, **fields)


@pytest.fixture
def rows() -> list[TrialRow]:
    """Budget 0: 6 and 8 partial; budget 400: 15 and 11, of which 5 and 7 entire; 1500 has failed and is at work."""
    return [
        row(0, {"budget": 0, "seed": 0}, 6),
        row(1, {"budget": 0, "seed": 1}, 8),
        row(2, {"budget": 400, "seed": 0}, 15, 5, seconds={"align": 100.0}, worked={"align": 80.0}),
        row(3, {"budget": 400, "seed": 1}, 11, 7, seconds={"evaluate": 60.0}, worked={"evaluate": 50.0}),
        row(4, {"budget": 1500, "seed": 0}, state="failed", error=EVIL),
        row(5, {"budget": 1500, "seed": 1}, state="running", stage="align 50 of 1000 steps"),
    ]


def test_points_are_means_over_seeds(rows: list[TrialRow]):
    scratch, small = points(rows)
    assert (scratch.values, small.values) == ({"budget": 0}, {"budget": 400})
    assert small.mean("avg_all") == pytest.approx((20 / 40 + 18 / 40) / 2)
    mean, low, high = small.over_seeds("avg_all")  # 0.5 and 0.45: t(0.975, 1) = 12.706, standard error 0.025
    assert (mean, low, high) == pytest.approx((0.475, 0.475 - 12.706 * 0.025, 0.475 + 12.706 * 0.025), abs=1e-4)
    assert small.pooled("partial").rate == 26 / 40


def test_the_best_is_the_best_seed_of_the_best_point():
    lucky = [row(0, {"lr": 1, "seed": 0}, 19), row(1, {"lr": 1, "seed": 1}, 1)]
    steady = [row(2, {"lr": 2, "seed": 0}, 12), row(3, {"lr": 2, "seed": 1}, 14)]
    found = best(lucky + steady, "avg_all")
    assert found is not None
    assert found.id == "003"
    assert best([], "avg_all") is None


def test_axes_have_the_shortest_names_that_tell_them_apart():
    axes = ["budget", "pretrain.train.steps", "align.train.steps", "align.train.lr"]
    assert list(short_names(axes).values()) == ["budget", "pretrain.train.steps", "align.train.steps", "lr"]
    assert label({"align.align.freeze": ["vision"], "align.train.lr": 0.00212345}) == "freeze vision, lr 0.00212"
    assert label({"freeze": []}) == "freeze none"


def test_the_text_table_says_what_was_found_and_what_failed(rows: list[TrialRow]):
    lines = text_table(rows).splitlines()
    assert re.fullmatch(r"budget 400 +65\.0 +30\.0 +47\.5 +16-79 +50-78 +18-45 +2", lines[4])
    assert lines[5] == f"004 (budget 1500, seed 0): failed: {EVIL}"
    assert lines[6] == "005 (budget 1500, seed 1): running"


def test_costs_name_what_was_neither_training_nor_episodes(rows: list[TrialRow]):
    text = cost_text(rows, wall_s=170, at_once=1)
    rest = "the rest of their stages 30 s (19 %); without a stage 10 s"
    assert text == f"170 s of wall-clock, 1 at a time: align 80 s, evaluate 50 s, {rest}"


def test_the_ledger_reads_what_it_wrote_and_facts_leave_out_the_clock(rows: list[TrialRow], tmp_path: Path):
    (tmp_path / "trials").mkdir()
    write_row(tmp_path, rows[2])
    assert read_row(tmp_path, "002", {}) == rows[2]
    assert read_row(tmp_path, "009", {"seed": 3}) == TrialRow(id="009", values={"seed": 3})
    rows[2].validation = {"bc/val_loss": 0.5, "bc/samples_per_s": 300.0, "bc/data_wait_pct": 1.0}
    assert rows_json(rows)[2]["validation"] == {"bc/val_loss": 0.5}
    assert "seconds" not in rows_json(rows)[2]


@pytest.fixture
def evaluated(rows: list[TrialRow], tmp_path: Path) -> list[TrialRow]:
    """The rows, the best one with its videos."""
    (tmp_path / "evaluated" / "videos").mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
    iio.imwrite(tmp_path / "evaluated/videos/put_spoon.mp4", frames, fps=5, codec="libx264", pixelformat="yuv420p")
    rows[2].runs = {"align": str(tmp_path / "align"), "evaluate": str(tmp_path / "evaluated")}
    return rows


def draw(folder: Path, rows: list[TrialRow], **more) -> str:
    frame = sweep_page.Frame(title=EVIL, plan={"budget": {"grid": [0, 400, 1500]}}, dashboard="http://127.0.0.1:8265")
    return sweep_page.write(folder, rows, frame, **more).read_text()


def test_while_it_runs_the_page_fetches_itself_anew(evaluated: list[TrialRow], tmp_path: Path):
    text = draw(tmp_path, evaluated, running=True)
    Page(text)
    assert '<meta http-equiv="refresh" content="10">' in text
    assert "align 50 of 1000 steps" in text
    assert 'href="http://127.0.0.1:8265"' in text
    assert "<video" not in text


def test_when_it_ends_the_page_is_still_and_needs_nothing(evaluated: list[TrialRow], tmp_path: Path):
    text = draw(tmp_path, evaluated, running=False)
    found = Page(text)
    assert "refresh" not in text
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert "<script" not in text
    assert found.tags.count("svg") == 2  # budget curve, parallel coordinates
    assert found.tags.count("video") == 1
    for expected in ("47.5", "16-79", "80 at work", "&lt;script&gt;alert("):
        assert expected in text


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path: Path):
    text = draw(tmp_path, [row(0, {"budget": 0}), row(1, {"budget": 4})], running=True)
    assert "0 of 2 trials have ended" in text
    assert "svg" not in Page(text).tags


def test_two_axes_make_a_heat_map(tmp_path: Path):
    rows = [
        row(n, {"pretrain.train.steps": a, "align.train.steps": b}, 2 * n)
        for n, (a, b) in enumerate([(0, 100), (0, 200), (50, 100)])
    ]
    text = draw(tmp_path, [*rows, row(3, {"pretrain.train.steps": 50, "align.train.steps": 200})], running=False)
    assert "Mean Avg-All over seeds" in text
    assert "pretrain.train.steps" in text
    assert Page(text).tags.count("svg") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install -y chromium")
def test_a_browser_draws_it(evaluated: list[TrialRow], tmp_path: Path):
    draw(tmp_path, evaluated, running=False)
    shot, page = tmp_path / "page.png", tmp_path / sweep_page.PAGE
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path}/profile", "--window-size=1200,1600"]
    subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=400, check=True)
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels.shape == (1600, 1200)
    assert (np.abs(pixels - np.median(pixels)) > 60).mean() > 0.01


def test_stopped_trials_are_shown_as_far_as_they_came(tmp_path: Path):
    """Successive halving: all trials have a line, though few are evaluated; what came after the stop is not shown."""
    rows = [row(n, {"lr": 10.0**-n, "history": n}, 4 if n == 0 else None) for n in range(3)]
    for trial in rows[:2]:
        trial.runs["align"] = str(tmp_path / trial.id)
        (tmp_path / trial.id).mkdir()
        lines = [f'{{"step": {step}, "bc/r2_mean": {value}}}\n' for step, value in ((60, 0.25), (120, 0.75))]
        (tmp_path / trial.id / "metrics.jsonl").write_text("".join(lines))
    rows[1].state, rows[1].logged_step = "stopped", 60
    frame = sweep_page.Frame(title="search", plan={}, validation="bc/r2_mean")
    text = sweep_page.write(tmp_path, rows, frame, running=False).read_text()
    assert Page(text).tags.count("svg") == 3  # heat map, held-out demonstrations, parallel coordinates
    assert [cell in text for cell in ("0.750<small>step 120", "0.250<small>step 60", "-<small>")] == 3 * [True]
