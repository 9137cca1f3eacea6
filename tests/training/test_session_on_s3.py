"""Training on a (loopback) S3 server, dataset and run folder: killed, taken up again, the same curve."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tap_ray import locks, storage
from tap_ray.errors import CheckpointError
from tap_ray.training import checkpoint, session
from tap_ray.training.progress import train_here
from tests.distributed import toy_player
from tests.distributed import toy_training as toy

CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from tap_ray import storage
from tap_ray.training.progress import train_here
from tests.distributed import toy_training as toy
run, data = map(storage.to_path, sys.argv[1:3])
task = replace(toy.toy_task(run, data, ray=False), async_checkpoints=sys.argv[4] == "async")
train_here(toy.held(task, Path(sys.argv[3])), progress=False)
"""
"""It waits two steps after the first checkpoint that it writes."""


def curve(run: Path) -> list[tuple[float, float]]:
    lines = session.read_metrics(run / "metrics.jsonl")
    return [(line["step"], line["toy/loss"]) for line in lines if "toy/loss" in line]


@pytest.mark.slow
@pytest.mark.long_proof
@pytest.mark.parametrize("how", ["sync", "async"])
def test_killed_and_taken_up_again(how: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, run, whole = storage.to_path(f"{bucket}/play"), storage.to_path(f"{bucket}/run"), tmp_path / "whole"
    toy_player.robots().write_dataset(data, 24)
    train_here(toy.toy_task(whole, data, ray=False), progress=False)
    for step in (5, 10):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(run), str(data), str(tmp_path / "hold"), how])
        while (newest := checkpoint.latest(run / "checkpoints")) is None or newest.name < f"step-{step:08d}":
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert step <= len(curve(run)) < 20
    (run / "checkpoints" / "step-00000099").mkdir()
    storage.write(run / "checkpoints" / "step-00000099" / "model.safetensors", b"half")  # a kill in an upload

    steps: list[int] = []
    monkeypatch.setattr(locks, "LEASE_S", 10**6)  # who waited for the dead would wait for days
    train_here(toy.toy_task(run, data, ray=False), log=lambda _, step: steps.append(step), progress=False)
    assert curve(run) == curve(whole)
    assert min(steps) > 5
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000015", "step-00000020"]
    for name in ("model.safetensors", "optimizer.safetensors"):
        newest = [storage.read(folder / "checkpoints" / "step-00000020" / name) for folder in (run, whole)]
        assert newest[0] == newest[1]


def test_a_run_that_somebody_trains_is_left_alone(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "LOCK_WAIT_S", 0.1)
    run = storage.to_path(bucket)
    with session.lock(run), pytest.raises(CheckpointError, match=r"Another process is training in s3://"):
        train_here(toy.toy_task(run, run, ray=False), progress=False)
