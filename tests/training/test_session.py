"""A run folder taken up again, without Ray."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from tap_ray.dataset.mixture import Mixture, open_mixture
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import schedule
from tap_ray.dataset.windows import num_batches
from tap_ray.errors import CheckpointError, StorageError, TapRayError
from tap_ray.training import checkpoint, session
from tap_ray.training.progress import describe, train_here
from tap_ray.training.session import WorkerContext
from tap_ray.types import Shard, Window
from tests.distributed import toy_player
from tests.distributed import toy_training as toy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_player.robots().write_dataset(tmp_path_factory.mktemp("session") / "play", 24)


def losses(run: Path) -> list[tuple[float, float]]:
    return [
        (line["step"], line["toy/loss"]) for line in session.read_metrics(run / "metrics.jsonl") if "toy/loss" in line
    ]


@pytest.fixture(params=["one dataset", "a mixture"])
def source(data: Path, request: pytest.FixtureRequest) -> Path | Mixture:
    """Two thirds of a mixture's batches are of the larger set."""
    if request.param == "one dataset":
        return data
    more = data.with_name("more")
    if not more.exists():
        toy_player.robots().write_dataset(more, 9)
    return open_mixture([data, more], [2.0, 1.0])


def test_cut_off_and_taken_up_again(tmp_path: Path, source: Path | Mixture):
    """Truncated at step 13, after the checkpoint at 10: lines 11 and 12 are dropped and written once more."""
    data, whole, cut = source, tmp_path / "whole", tmp_path / "cut"
    train_here(toy.toy_task(whole, data, ray=False), progress=False)
    with pytest.raises(TapRayError, match="The loss is nan after 13 steps"):
        train_here(toy.toy_task(cut, data, ray=False, bad_step=13), progress=False)
    assert losses(cut)[-1][0] == 12
    (cut / "checkpoints" / ".step-00000015.half").mkdir()

    seen = []
    last = train_here(toy.toy_task(cut, data, ray=False), log=lambda metrics, step: seen.append(step), progress=False)
    assert losses(cut) == losses(whole)
    assert min(seen) == 11
    assert last["toy/loss"] == losses(whole)[-1][1]
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["step-00000015", "step-00000020"]
    assert (cut / "exported.json").read_text() == (whole / "exported.json").read_text()


def test_taken_up_again_within_the_data(tmp_path: Path, data: Path):
    """A step takes two batches: at the checkpoint of step 10 twenty are behind."""
    runs = {}
    for name, bad_step in (("whole", 0), ("cut", 2 * 13)):
        task = toy.toy_task(tmp_path / name, data, ray=False, bad_step=bad_step)
        config = dataclasses.replace(task.config, gradient_accumulation_steps=2)
        runs[name] = dataclasses.replace(task, config=config)
    train_here(runs["whole"], progress=False)
    with pytest.raises(TapRayError, match="The loss is nan after 13 steps"):
        train_here(runs["cut"], progress=False)
    train_here(dataclasses.replace(runs["cut"], build=runs["whole"].build), progress=False)
    assert losses(runs["cut"].run) == losses(runs["whole"].run)


CHILD = """
import sys, time
from dataclasses import replace
from pathlib import Path
from tap_ray.training import checkpoint
from tap_ray.training.progress import train_here
from tests.distributed import toy_training as toy
write = checkpoint.write_tensors
def stuck(file, tensors):
    write(file, tensors)
    time.sleep(10**6 if "step-00000010" in str(file) else 0)
checkpoint.write_tensors = stuck
task = toy.toy_task(Path(sys.argv[1]), Path(sys.argv[2]), ray=False)
train_here(replace(task, async_checkpoints=True), progress=False)
"""
"""The upload of its second checkpoint never ends."""


def test_killed_while_a_checkpoint_is_uploaded(tmp_path: Path, data: Path):
    """Training went on meanwhile, up to the next checkpoint; what was not whole does not count, and nothing is lost."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_here(toy.toy_task(whole, data, ray=False), progress=False)
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(cut), str(data)])
    while len(losses(cut)) < 15:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert session.newest_step(cut) == 5
    assert list((cut / "checkpoints").glob("*step-00000010*"))

    task = dataclasses.replace(toy.toy_task(cut, data, ray=False), async_checkpoints=True)
    train_here(task, progress=False)
    assert losses(cut) == losses(whole)
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["step-00000015", "step-00000020"]
    for file in (whole / "checkpoints" / "step-00000020").glob("*.safetensors"):
        assert (cut / "checkpoints" / "step-00000020" / file.name).read_bytes() == file.read_bytes()


def test_deterministic_operations_change_nothing_on_a_cpu(tmp_path: Path, data: Path):
    plain = toy.toy_task(tmp_path / "plain", data, ray=False)
    train_here(plain, progress=False)
    task = dataclasses.replace(plain, run=tmp_path / "run", build=toy.stage_with_settings, deterministic=True)
    try:
        train_here(task, progress=False)
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    newest, want = (run / "checkpoints" / "step-00000020" for run in (task.run, plain.run))
    assert json.loads((newest / "state.json").read_text())["facts"] == {"kind": toy.DETERMINISTIC}
    assert losses(task.run) == losses(plain.run)
    for file in want.glob("*.safetensors"):
        assert (newest / file.name).read_bytes() == file.read_bytes()


def test_a_checkpoint_that_cannot_be_uploaded_ends_the_run(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    def full(file: Path, tensors: object) -> None:
        raise StorageError(f"{file}: no space left.")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    task = dataclasses.replace(toy.toy_task(tmp_path, data, ray=False), async_checkpoints=True)
    with pytest.raises(StorageError, match=r"model\.safetensors: no space left\."):
        train_here(task, progress=False)
    assert [step for step, _ in losses(tmp_path)][-1] == 10


def test_one_worker_takes_up_what_two_have_left(tmp_path: Path, data: Path):
    """Ten batches each, then the rest of the epoch: each of its windows once, and as many as two would have had."""
    seen: list[bytes] = []

    def noted(*, shard: Shard) -> Iterator[Window]:
        for window in toy.local_batches(data, shard=shard):
            seen.extend(state.tobytes() for state in window.state)
            yield window

    task = dataclasses.replace(toy.toy_task(tmp_path / "run", data, ray=False, steps=10), batches=noted)
    for rank in range(2):
        session.work(task, WorkerContext(rank=rank, world=2))
    kept = json.loads((task.run / "checkpoints" / "step-00000010" / "state.json").read_text())
    assert kept["batches"] == [[2, 10]]

    dataset = open_dataset(data)
    two = [schedule(dataset, toy.WINDOWS, seed=toy.SEED, shard=Shard(worker=rank, num_workers=2)) for rank in range(2)]
    epoch = [part.group for parts in two for part in takewhile(lambda part: part.epoch == 0, parts)]
    batches = sum(num_batches(dataset, group, toy.WINDOWS) for group in epoch)
    assert batches > 30
    session.work(dataclasses.replace(task, config=dataclasses.replace(task.config, steps=10 + batches - 20)))
    assert len(seen) == batches * toy.WINDOWS.batch_size
    assert len(set(seen)) == len(seen)


def test_a_finished_run_trains_no_more(tmp_path: Path, data: Path):
    run = tmp_path / "run"
    first = train_here(toy.toy_task(run, data, ray=False), progress=False)
    before = (run / "metrics.jsonl").read_text()
    assert train_here(toy.toy_task(run, data, ray=False), progress=False) == first
    assert (run / "metrics.jsonl").read_text() == before


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a": 3.0}\n{"step": 3, "a"')
    assert [line["step"] for line in session.read_metrics(file)] == [1, 2]
    session.forget_after(file, 1)
    assert file.read_text() == json.dumps({"step": 1, "a": 2.0}) + "\n"


def test_a_folder_that_is_in_use(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "LOCK_WAIT_S", 0.1)
    with session.lock(tmp_path), pytest.raises(CheckpointError, match=r"Another process is training in .*--out"):
        train_here(toy.toy_task(tmp_path, data, ray=False), progress=False)


def test_another_model_is_refused(tmp_path: Path, data: Path):
    task = toy.toy_task(tmp_path / "run", data, ray=False)
    train_here(task, progress=False)
    other = dataclasses.replace(task, build=lambda: dataclasses.replace(toy.stage(0.0, 0), kind="other"))
    with pytest.raises(CheckpointError, match="kind: 'toy' before, 'other' now"):
        train_here(other, progress=False)


def test_words_of_the_bar():
    line = {"step": 5, "idm/loss": 0.25, "idm/samples_per_s": 612.3, "idm/data_wait_pct": 1.6, "idm/lr": 0.1}
    assert describe(line) == "loss 0.2500, 612 samples/s, data wait 2 %"
