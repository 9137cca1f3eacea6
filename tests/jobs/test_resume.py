"""A training job killed in the middle: the same command goes on, to the weights of a run that nobody disturbed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from tap_ray import runs
from tap_ray.config import to_dict
from tap_ray.training import session
from tests.distributed.nodes import wait_for
from tests.made_data import write_made_dataset
from tests.small import SMALL

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.local_ray,
    pytest.mark.slow,
    pytest.mark.long_proof,  # three lives of a job each
    pytest.mark.timeout(1800),
]

REPOSITORY = Path(__file__).parents[2]
STEPS, EVERY = 150, 20
FLAGS = (
    f"--config small.yaml --steps {STEPS} --batch-size 6 --checkpoint-every {EVERY} --validate-every 100 --log-every 1"
)
FLAGS += " --windows.holdout-every 3 --windows.group-size 3"
JOBS = {
    "one dataset": "jobs.pretrain --data near",
    "a mixture": "jobs.pretrain --data near:1 far:0.3",
    "co-training with a mixture": "jobs.align --demos demos --init scratch --play near:1 far:0.3 --align.play-batch 4",
}


@pytest.fixture
def shop(tmp_path: Path, mlflow_uri: str) -> Path:
    """Two sets of play of different length, demonstrations, and a small policy."""
    write_made_dataset(tmp_path / "near", num_episodes=12, tasks=("play",), crops=True)
    write_made_dataset(tmp_path / "far", num_episodes=9, tasks=("play", "play"), crops=True)
    write_made_dataset(tmp_path / "demos", num_episodes=12, tasks=("go left", "go right"))
    small = {"policy": to_dict(SMALL), "windows": {"horizon": SMALL.chunk}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    return tmp_path


def start(job: str, shop: Path, out: str) -> subprocess.Popen:
    """The job in a process of its own, on the Ray of these tests."""
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", *job.split(), *FLAGS.split(), "--out", out]
    with open(shop / f"{out}.log", "a") as log:
        return subprocess.Popen(command, cwd=shop, env=env, stdout=log, stderr=log)


def losses(run: Path) -> list[tuple[float, float]]:
    lines = session.read_metrics(run / session.METRICS)
    return [(line["step"], line[name]) for line in lines for name in ("play/loss", "bc/loss") if name in line]


@pytest.mark.parametrize("job", JOBS)
def test_a_killed_job_goes_on_bit_by_bit(job: str, shop: Path):
    whole, cut = shop / "whole", shop / "cut"
    assert start(JOBS[job], shop, "whole").wait() == 0, (shop / "whole.log").read_text()

    life = start(JOBS[job], shop, "cut")
    wait_for(lambda: len(losses(cut)) > EVERY + 5 or life.poll() is not None)
    assert life.poll() is None, (shop / "cut.log").read_text()
    life.kill()
    life.wait()
    assert not runs.is_done(cut)
    assert EVERY <= session.newest_step(cut) < STEPS
    assert start(JOBS[job], shop, "cut").wait() == 0, (shop / "cut.log").read_text()

    assert [step for step, _ in losses(cut)] == list(range(1, STEPS + 1))
    assert losses(cut) == losses(whole)
    weights = sorted(path.relative_to(whole) for path in (whole / "final").rglob("*.safetensors"))
    assert weights
    for path in weights:
        assert (cut / path).read_bytes() == (whole / path).read_bytes(), path
