"""FSDP on two processes: what it learns, and that any number of processes goes on from its checkpoints."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from tap_ray.errors import ConfigError
from tap_ray.models.weights import read_tensors
from tap_ray.training import checkpoint
from tap_ray.training.progress import train_here
from tap_ray.training.sharding import shard
from tests.training import sharded
from tests.training.sharded import HALF, STEPS, curve


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(sharded.train_both, (2, folder, toy_dataset), nprocs=2)
    return folder


def close(have: list[tuple[float, float]], want: list[tuple[float, float]]) -> None:
    assert [step for step, _ in have] == [step for step, _ in want]
    assert [loss for _, loss in have] == pytest.approx([loss for _, loss in want], rel=1e-4)


@pytest.mark.parametrize("products", ["", "_bf16"])
def test_it_learns_what_whole_models_learn(products: str, runs: Path):
    sharded_run, whole = runs / f"fsdp{products}", runs / f"ddp{products}"
    assert len(curve(sharded_run)) == STEPS
    for name in ("toy/loss", "toy/grad_norm", "toy/held_out"):
        close(curve(sharded_run, name), curve(whole, name))
    assert (curve(whole) == curve(runs / "ddp")) == (not products)


def test_each_process_scores_its_share_of_what_is_held_out(runs: Path):
    """Two of three, since a sharded model needs both processes each time; the first one's scores are all three."""
    for parallel in ("ddp", "fsdp"):
        assert curve(runs / parallel, "toy/scored_here") == [(HALF, 2), (STEPS, 2)]
        alone = sharded.Stage()
        checkpoint.load_weights(runs / parallel / "checkpoints" / f"step-{STEPS:08d}", alone.network)
        assert curve(runs / parallel, "toy/held_out")[-1] == (STEPS, alone.validate()["toy/held_out"])


def test_killed_and_resumed_it_is_the_same_run(runs: Path):
    assert curve(runs / "killed") == curve(runs / "fsdp")
    have, want = (read_tensors(runs / name / "final.safetensors") for name in ("killed", "fsdp"))
    assert all(torch.equal(have[name], want[name]) for name in want)


def test_either_kind_goes_on_from_the_others_checkpoint(runs: Path):
    close(curve(runs / "from_ddp"), curve(runs / "ddp"))
    close(curve(runs / "from_fsdp"), curve(runs / "fsdp"))


def test_its_checkpoint_holds_whole_tensors(runs: Path):
    for name in ("model", "optimizer", "ema"):
        have, want = (
            read_tensors(runs / kind / "checkpoints" / f"step-{STEPS:08d}" / f"{name}.safetensors")
            for kind in ("fsdp", "ddp")
        )
        assert have.keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(have[key], value, rtol=1e-3, atol=1e-5)
    saved = read_tensors(runs / "fsdp" / "final.safetensors")
    average = read_tensors(runs / "fsdp" / "checkpoints" / f"step-{STEPS:08d}" / "ema.safetensors")
    assert all(torch.equal(saved[name], average[name]) for name in saved)


def test_a_checkpoint_that_is_written_later_is_of_its_step(runs: Path):
    """Gathered tensors are not those that go on being trained, nor are buffers and numbers of steps beside them."""
    for step in (HALF, STEPS):
        for name in ("model", "optimizer", "ema", "rng"):
            have, want = (
                read_tensors(runs / kind / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")
                for kind in ("async", "fsdp")
            )
            assert have.keys() == want.keys()
            assert all(torch.equal(have[key], want[key]) for key in want)


def test_a_machine_that_will_be_preempted_gets_one_checkpoint(runs: Path):
    """The processes learn of it behind different steps; both take part at the first of them."""
    assert curve(runs / "preempted") == curve(runs / "fsdp")
    kept = sorted(path.name for path in (runs / "preempted" / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (min(sharded.NOTICED_AT), STEPS)]


def test_one_process_goes_on(runs: Path, toy_dataset: Path, tmp_path: Path):
    alone = sharded.half_of(runs / "fsdp", tmp_path / "alone")
    train_here(sharded.job(alone, toy_dataset), progress=False)
    assert curve(alone)[:HALF] == curve(runs / "fsdp")[:HALF]
    # The first worker's batch of the next step is also this process's, under the same weights.
    assert curve(alone)[HALF][0] == HALF + 1
    assert read_tensors(alone / "final.safetensors").keys() == sharded.Network().state_dict().keys()


def test_a_network_without_repeated_layers_is_refused():
    with pytest.raises(ConfigError, match=r"--parallel fsdp shards the layers of an image-text model"):
        shard(nn.Linear(2, 2), torch.device("cpu"))


def test_weights_of_two_types_are_refused():
    network = sharded.Network()
    network.last.to(torch.bfloat16)
    with pytest.raises(
        ConfigError, match=r"weights of a single dtype; got torch\.bfloat16, torch\.float32\. Use --policy"
    ):
        shard(network, torch.device("cpu"))
