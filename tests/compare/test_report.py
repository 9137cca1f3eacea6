"""The page: whole, self-contained, safe against what files contain, and drawn by a real browser."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from tap_ray.compare import report
from tap_ray.errors import CheckpointError, StorageError
from tests.compare.evaluated_runs import TASKS, make_protocol, make_result, make_training

VOID = {"meta", "br", "img", "hr", "use", "path"}
EVIL = '<script>alert("x")</script> $\\alpha$ & <b>'


class Page(HTMLParser):
    """Checks that tags nest and collects what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name.split(":")[-1] in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another tag"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two policies with training runs, two scenarios, a video; one has an evil name."""
    root = tmp_path_factory.mktemp("runs")
    protocol = make_protocol(scenarios=("standard", "background"), episodes=24)
    pretrain = make_training(root / "pretrain-1", "idm")
    align = make_training(root / "align-1", "align", init=pretrain)
    rng = np.random.default_rng(0)
    made = []
    for name, label, run in (("tap", "tap, 50 demonstrations", align), ("evil", EVIL, None)):
        outcomes = {task: "".join(rng.choice(list(".pe"), 24)) for task in TASKS}
        made.append(make_result(root / name, outcomes, protocol=protocol, name=label, run=run, error=EVIL))
        frames = rng.integers(0, 255, (10, 64, 64, 3), np.uint8)
        iio.imwrite(made[-1] / "videos" / f"{TASKS[0]}.mp4", frames, fps=5, codec="libx264", pixelformat="yuv420p")
    return made


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    return report.write(runs, tmp_path_factory.mktemp("page"))


def test_the_page_parses_and_fetches_nothing(page):
    text = page.read_text()
    found = Page(text)
    assert page.name == "compare.html"
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert found.tags.count("svg") == 4  # tasks, failures, scenarios, curves
    assert found.tags.count("video") == 2


def test_ids_are_unique_and_ink_follows_the_theme(page):
    text = page.read_text()
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert {i for i in ids if ids.count(i) > 1 and not i.startswith(("m", "p"))} == set()
    assert "#010203" not in text
    assert "var(--ink)" in text
    assert "prefers-color-scheme: dark" in text


def test_what_files_contain_is_escaped(page):
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(" in text
    assert "$\\alpha$" in text  # not typeset as mathematics


def test_the_videos_are_those_of_the_folders(page, runs):
    found = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", page.read_text())
    assert [base64.b64decode(v) for v in found] == [(r / "videos" / f"{TASKS[0]}.mp4").read_bytes() for r in runs]


def test_a_large_video_is_named_instead(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_VIDEO_BYTES", 10)
    text = report.write(runs[1:], tmp_path / "small.html").read_text()
    assert "<video" not in text
    assert f"too large to embed, see <code>{runs[1]}/videos/{TASKS[0]}.mp4" in text


def test_numbers_and_labels_are_there(page):
    text = page.read_text()
    for expected in (
        "TAP-20k",
        "not comparable",
        "McNemar",
        "background",
        "Drop of entire success, standard minus scenario",
        "real robot, 20 trials each",
        "align/val_loss",
        "idm/loss",
    ):
        assert expected in text


def test_how_runs_failed_is_on_the_page(page, two, tmp_path):
    text = page.read_text()
    assert "How they failed: standard" in text
    assert "never reached (semantic)" in text  # the plot's legend
    assert report.failures.RULE in text
    for run in two:
        data = json.loads((run / "results.json").read_text())
        del data["failure_class"], data["failures"]
        for row in data["tasks"].values():
            del row["standard"]["failures"]
        (run / "results.json").write_text(json.dumps(data))
    old = report.write(two, tmp_path / "old.html").read_text()
    assert "How they failed" not in old
    assert "svg" in old


def test_training_runs_alone_give_curves(tmp_path):
    run = make_training(tmp_path / "pretrain-1", "idm")
    text = report.write([run], tmp_path / "out.html").read_text()
    Page(text)
    assert "Learning curves" in text
    assert "TAP-20k" not in text


def test_errors_reach_the_user_before_anything_is_written(runs, tmp_path):
    other = make_result(tmp_path / "other", dict.fromkeys(TASKS, "...."))
    with pytest.raises(CheckpointError, match="different protocols"):
        report.write([*runs, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot create .*file: File exists"):
        report.save(tmp_path / "file" / "compare.html", "<p>")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install -y chromium")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_a_browser_draws_it(page, tmp_path, width, dark):
    """Light on a wide screen and dark on a narrow one: the background is as asked, and something is drawn on it."""
    shot = tmp_path / "page.png"
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path}/profile", f"--window-size={width},1500"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=400, check=True)
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels.shape == (1500, width)
    background = np.median(pixels)
    assert background < 60 if dark else background > 220
    assert (np.abs(pixels - background) > 60).mean() > 0.01
