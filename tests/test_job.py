"""Signals, and jobs that were submitted to a cluster; a job's start and end on its own are in test_config.py."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tap_ray import job, signals, storage
from tap_ray.errors import ConfigError

COPY = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1f")


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path | None = None


def test_a_submitted_job_refuses_results_that_go_with_the_cluster():
    for out, named in ((Path("data/mine"), "--out data/mine"), (None, "--out is not given")):
        message = f"{named}: this job was submitted to a cluster, where relative paths are in Ray's copy of your folder"
        with pytest.raises(ConfigError, match="^" + re.escape(message)):
            job.require_kept(Config(out=out), COPY)
    job.require_kept(Config(out=Path("/mnt/mine")), COPY)
    job.require_kept(Config(out=storage.to_path("s3://bucket/mine")), COPY)
    job.require_kept(Config(out=Path("data/mine")), Path("/home/me"))


def test_a_home_folder_is_expanded_wherever_a_path_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.to_path("~/x") == storage.to_path(Path("~/x")) == Path("/home/me/x")
    with pytest.raises(ConfigError, match=r"^~nobody-here/x: .* Give the whole path\."):
        storage.to_path("~nobody-here/x")


WAITS = """
import sys, threading
from pathlib import Path
from dataclasses import dataclass
from tap_ray.job import run_job

@dataclass(frozen=True)
class Config: ...

def main(config):
    try:
        print("begun", flush=True)
        threading.Event().wait()
    finally:  # what ends a job cleanly takes its time
        print("ending", flush=True)
        sys.stdin.readline()
        print("ended", flush=True)

run_job(main, Config)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_ends_a_job_and_the_next_does_not_disturb_its_end(number: int, status: int):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None,  # as after a shell's `&`
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "stopping ...\n"
    out, err = process.communicate("\n", timeout=60)
    assert out == "ended\n"
    assert err == "interrupted: run the same command again to resume from here.\n"
    assert process.returncode == status


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in signals.ENDING]
    with signals.handle_signals(), signals.handle_signals():
        assert [signal.getsignal(number) for number in signals.ENDING] == [signals.end_job] * 2
    assert [signal.getsignal(number) for number in signals.ENDING] == before


def test_a_jobs_run_is_begun_left_open_continued_and_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = Config(out=Path("run"))
    with job.job_run("probe", config) as run:
        run.log({"probe/x": 1.0})
        run.complete = False
    begun = json.loads(Path("run/manifest.json").read_text())
    assert begun["status"] == "running"
    with job.job_run("probe", config) as run:
        assert not run.done
        run.metadata["rate"] = 0.5
    ended = json.loads(Path("run/manifest.json").read_text())
    assert (ended["status"], ended["rate"]) == ("done", 0.5)
    assert ended["mlflow_run_id"] == begun["mlflow_run_id"]
    with job.job_run("probe", config) as run:
        assert run.done
    with job.job_run("probe", config, rewrites=True) as run:
        assert not run.done
