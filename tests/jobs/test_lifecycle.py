"""How each job ends when it is told to: real processes, started as a shell's `&` does, with SIGINT ignored."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from tap_ray import tracking
from tap_ray.config import to_dict
from tests.distributed import toy_player
from tests.jobs import bad_cases
from tests.small import SMALL

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MORE = [pytest.mark.long_proof]
REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 400
"""Bounds a hang only."""
LONG = "--steps 1000000 --batch-size 4 --checkpoint-every 0 --validate-every 0 --log-every 1"
PLAYED = "--max-steps 10 --image-size 16"


@dataclass(frozen=True)
class Job:
    """A verb with more work than it will get to do."""

    command: str
    begun: Callable[["Life"], bool]
    statuses: tuple[int, int] = (143, 130)
    """Of SIGTERM and SIGINT."""


class Life:
    """A running job."""

    def __init__(self, command: str, here: Path) -> None:
        self.here = here
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": uri(here), "RAY_AUTH_MODE": "token"}
        env.pop("RAY_ADDRESS", None)
        self._log = open(here / "output", "a+")  # noqa: SIM115  closed by stop()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=here,
            env=env,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None,
        )

    def until(self, happened: Callable[["Life"], bool]) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not happened(self):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.05)

    def output(self) -> str:
        return (self.here / "output").read_text()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def stop(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.wait()
        self._log.close()


def uri(here: Path) -> str:
    return f"sqlite:///{here}/mlflow.db"


def tracked(life: Life) -> bool:
    """Its MLflow run has begun, and the run folder says so."""
    manifest = life.here / "o" / "manifest.json"
    return manifest.exists() and tracking.run_id_of(life.here / "o") is not None


def has(pattern: str) -> Callable[[Life], bool]:
    return lambda life: any(life.here.glob(pattern))


def says(text: str) -> Callable[[Life], bool]:
    return lambda life: text in life.output()


def ray_works(life: Life) -> bool:
    """A process of Ray's does something of ours."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(c.name().startswith("ray::") for c in psutil.Process(life.process.pid).children(recursive=True))
    return False


JOBS = {
    "collect_play": Job(
        f"jobs.collect_play --episodes 3000 {PLAYED} --explorer uniform --out o", has("o/data/*/*.parquet")
    ),
    "collect_demos": Job("jobs.collect_demos --episodes 3000 --image-size 16 --out o", tracked),
    "pretrain": Job(f"jobs.pretrain --config small.yaml --data play {LONG} --out o", has("o/metrics.jsonl")),
    "pretrain_prior": Job(
        f"jobs.pretrain_prior --data play --prior.chunk 4 --prior.width 32 {LONG} --out o", ray_works
    ),
    "align": Job(f"jobs.align --config small.yaml --demos demos --init moves {LONG} --out o", has("o/metrics.jsonl")),
    "evaluate": Job(
        "jobs.evaluate --policy random --episodes 20000 --tasks put_spoon_on_cloth --image-size 16 --out o",
        has("o/episodes.jsonl"),
    ),
    "look": Job("jobs.saliency --policy tap --episodes 2000 --tasks put_spoon_on_cloth --out o", tracked),
    "probe": Job("jobs.probe --policy moves --data play --episodes 0 --every 1 --out o", tracked),
    "compare": Job("jobs.compare evaluated --out o", tracked),
    "cut_crops": Job("jobs.cut_crops --data uncut", ray_works),
    "sweep": Job("jobs.sweep sweep.yaml --demos shown --store store --out o", has("store/align-*/metrics.jsonl")),
    "serve": Job("jobs.serve --policy tap --port 0", says("curl "), statuses=(0, 0)),
    "pipeline": Job("jobs.pipeline --play-episodes 3000 --out o", has("o/play/manifest.json")),
}


USED = ("play", "demos", "moves", "tap", "evaluated", "uncut", "small.yaml", "sweep.yaml")
"""Things in the shop that commands name."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    good = bad_cases.shop(tmp_path_factory.mktemp("life") / "good")
    align = {
        "policy": {key: value for key, value in to_dict(SMALL).items() if key != "image_size"},
        "windows": {"horizon": SMALL.chunk},
        "train": {"steps": 10**6, "batch_size": 4, "log_every": 1},
    }
    align["train"] |= {"checkpoint_every": 0, "validate_every": 0}
    evaluated = {"tasks": ["put_spoon_on_cloth"], "episodes": 1}
    toy_player.robots().write_dataset(good / "shown", 24)  # of a robot that can be evaluated on
    (good / "sweep.yaml").write_text(yaml.safe_dump({"align": align, "evaluate": evaluated}))
    shutil.rmtree(bad_cases.write_made_dataset(good / "uncut", num_episodes=100, tasks=("play",), crops=True) / "crops")
    return good


@pytest.fixture
def begin(request: pytest.FixtureRequest, empty_mlflow: Path, tmp_path: Path) -> Iterator[Callable[[str], Life]]:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    lives: list[Life] = []

    def start(command: str) -> Life:
        if not lives and {*command.split()} & {*USED}:
            for each in request.getfixturevalue("shop").iterdir():
                if each.name == "uncut":
                    shutil.copytree(each, tmp_path / each.name)
                else:
                    (tmp_path / each.name).symlink_to(each)
        lives.append(Life(command, tmp_path))
        return lives[-1]

    yield start
    for life in lives:
        life.stop()


ALWAYS = {("collect_play", signal.SIGTERM)}
"""An evaluation is ended by SIGINT below. The others end by the same wrapper: `make faults`."""


@pytest.mark.parametrize(
    ("verb", "number"),
    [
        pytest.param(verb, number, id=f"{verb}-{number.name}", marks=[] if (verb, number) in ALWAYS else MORE)
        for verb in JOBS
        for number in (signal.SIGTERM, signal.SIGINT)
    ],
)
def test_a_job_that_is_told_to_end_does_so_and_says_how(verb: str, number: int, begin: Callable[[str], Life]):
    job = JOBS[verb]
    life = begin(job.command)
    life.until(job.begun)
    status = life.end(number)
    output = life.output()
    assert status == job.statuses[number == signal.SIGINT], output
    assert "Traceback" not in output
    assert ("stopped" if verb == "serve" else "interrupted: run the same command again to resume from here.") in output
    if (life.here / "mlflow.db").exists():
        client = tracking.client_of(uri(life.here))
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert {run.info.status for run in found} <= {"KILLED"}, output
    assert not ray_works(life)


@pytest.mark.long_proof  # tests/test_runs.py has the refusal
def test_a_second_job_on_a_run_folder_is_refused_and_the_first_goes_on(begin: Callable[[str], Life]):
    first = begin(JOBS["look"].command)
    first.until(tracked)
    second = begin(JOBS["look"].command)
    assert second.process.wait(TIMEOUT_S) == 2
    assert f"error: Another job works in o: process {first.process.pid} on " in second.output()
    assert "Wait for it, or stop it and run again, or name another folder with --out." in second.output()
    assert first.process.poll() is None
    assert first.end(signal.SIGTERM) == 143


@pytest.mark.long_proof
def test_a_second_job_on_a_data_set_is_refused(begin: Callable[[str], Life]):
    first = begin(JOBS["collect_play"].command)
    first.until(has("o/data/*/*.parquet"))
    second = begin(JOBS["collect_play"].command)
    assert second.process.wait(TIMEOUT_S) == 2
    assert "error: o is being written by another process. Wait for it or stop it" in second.output()
    assert first.end(signal.SIGINT) == 130


@pytest.mark.long_proof
def test_a_job_ends_well_behind_a_proxy(begin: Callable[[str], Life], monkeypatch: pytest.MonkeyPatch):
    """Nothing answers there, and nothing is asked through it."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    life = begin("jobs.evaluate --policy random --episodes 1 --tasks put_spoon_on_cloth --max-steps 3 --image-size 48")
    assert life.process.wait(TIMEOUT_S) == 0, life.output()
    assert life.output().splitlines()[-1].startswith("runs/evaluate-")
