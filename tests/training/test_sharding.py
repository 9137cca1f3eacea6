"""FSDP on two processes: what it learns, and that any number of processes goes on from its checkpoints."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from tap_ray import storage
from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.weights import read_tensors
from tap_ray.training import checkpoint, shard_files
from tap_ray.training.progress import train_here
from tap_ray.training.shard_files import Shards
from tap_ray.training.sharding import shard
from tests.training import sharded
from tests.training.processes import run_two
from tests.training.sharded import HALF, STEPS, curve


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_two(sharded.train_both, folder, toy_dataset)
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


def saved(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors as torch's own reader sees them, whole, under one name each."""
    folder = run / "checkpoints" / f"step-{step:08d}" / name
    if not folder.is_dir():
        return read_tensors(folder.with_suffix(".safetensors"))
    reader = HuggingFaceStorageReader(str(folder))
    found = reader.read_metadata().state_dict_metadata
    whole = {key: torch.full(about.size, torch.nan) for key, about in found.items()}
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        load(whole, storage_reader=reader, no_dist=True)
    return whole


def test_each_process_writes_its_shards_as_torch_reads_them(runs: Path):
    for name in ("model", "optimizer", "ema"):
        files = sorted((runs / "fsdp" / "checkpoints" / f"step-{STEPS:08d}" / name).iterdir())
        assert [file.name for file in files] == ["00000-of-00002.safetensors", "00001-of-00002.safetensors"]
        sizes = [sum(value.numel() for value in read_tensors(file).values()) for file in files]
        have, want = (saved(runs / kind, STEPS, name) for kind in ("fsdp", "ddp"))
        assert sum(sizes) == sum(value.numel() for value in have.values())  # nothing is written twice
        assert 0.9 < sizes[0] / sizes[1] < 1.5
        assert have.keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(have[key], value, rtol=1e-3, atol=1e-5)
    last, average = read_tensors(runs / "fsdp" / "final.safetensors"), saved(runs / "fsdp", STEPS, "ema")
    assert all(torch.equal(last[name], average[name]) for name in average)


def test_a_checkpoint_that_is_written_later_is_of_its_step(runs: Path):
    """Copies are not what goes on being trained, nor are buffers and numbers of steps beside them."""
    for step in (HALF, STEPS):
        for name in ("model", "optimizer", "ema", "rng"):
            have, want = (saved(runs / kind, step, name) for kind in ("async", "fsdp"))
            assert have.keys() == want.keys()
            assert all(torch.equal(have[key], want[key]) for key in want)


def test_shards_that_are_missing_cut_off_or_of_another_model_are_refused_by_name(runs: Path, tmp_path: Path):
    def broken(name: str) -> Path:
        return Path(shutil.copytree(runs / "fsdp" / "checkpoints" / f"step-{STEPS:08d}", tmp_path / name))

    (broken("missing") / "model" / "00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing/model/00001-of-00002\.safetensors is missing\. Use an earlier"):
        checkpoint.load_weights(tmp_path / "missing", sharded.Network())
    file = broken("cut") / "model" / "00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"cut/model cannot be read \(truncated\?\): .* Use an earlier"):
        checkpoint.load_weights(tmp_path / "cut", sharded.Network())
    file = broken("more") / "model" / "00001-of-00002.safetensors"
    shutil.copy(file, file.with_name("00002-of-00003.safetensors"))
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors is of another number of workers\. Use an"):
        checkpoint.load_weights(tmp_path / "more", sharded.Network())
    other = sharded.Network()
    other.last = nn.Linear(8, 5)
    with pytest.raises(CheckpointError, match=r"last\.weight has shape \(7, 8\), this model has \(5, 8\)"):
        checkpoint.load_weights(broken("other"), other)


def test_on_an_object_store_it_counts_once_every_process_has_written(runs: Path, bucket: str):
    here, there = runs / "fsdp" / "checkpoints" / f"step-{STEPS:08d}", storage.to_path(bucket) / f"step-{STEPS:08d}"

    def kept(rank: int) -> checkpoint.Snapshot:
        shards = {}
        for name in ("model", "optimizer", "ema"):
            with safe_open(here / name / f"{rank:05d}-of-00002.safetensors", framework="pt") as file:
                places = json.loads(file.metadata()["DCP_SHARDING_INFO"])
                tensors = {key: file.get_tensor(key) for key in places}
            shards[name] = Shards(tensors=tensors, offsets={key: places[key]["saved_offsets"] for key in places})
        rng = {"rng": read_tensors(here / "rng.safetensors")}
        return checkpoint.Snapshot(step=STEPS, files=rng, shards=shards, rank=rank, world=2)

    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(checkpoint.save, there, kept(0), {})
        while not (there / "ema" / "00000-of-00002.safetensors").exists():
            assert not first.done()
        time.sleep(3 * shard_files.POLL_S)
        assert checkpoint.latest(there.parent) is None
        checkpoint.save(there, kept(1), {})
        first.result()
    assert checkpoint.latest(there.parent) == there
    networks = sharded.Network(), sharded.Network()
    for folder, network in zip((here, there), networks, strict=True):
        checkpoint.load_weights(folder, network)
    loaded = [network.state_dict() for network in networks]
    assert all(torch.equal(loaded[0][key], loaded[1][key]) for key in loaded[0])
    assert not torch.equal(loaded[0]["last.weight"], sharded.Network().last.weight)


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
