import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tap_ray.errors import CheckpointError
from tap_ray.training.checkpoint import TrainState, latest, load_into, save
from tap_ray.training.optim import adamw

METADATA = {"policy": {"width": 3, "sizes": (1, 2)}}


def trained(width: int = 3, *, steps: int = 2, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    optimizer = adamw(model, lr=0.1, weight_decay=0.05)
    for _ in range(steps):
        model(torch.randn(4, 2)).square().mean().backward()
        optimizer.step()
    ema = {name: p.detach() * 2 for name, p in model.named_parameters()}
    return TrainState(model=model, optimizer=optimizer, ema=ema, step=steps)


def test_everything_comes_back(tmp_path: Path):
    state = trained()
    save(tmp_path / "step-00000002", state, METADATA)
    numbers = torch.rand(3)
    other = trained(seed=1, steps=0)
    load_into(tmp_path / "step-00000002", other, METADATA)
    assert torch.equal(torch.rand(3), numbers)
    assert other.step == 2
    for name, value in state.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)
    have, want = other.optimizer.state_dict()["state"], state.optimizer.state_dict()["state"]
    assert all(torch.equal(have[i][key], want[i][key]) for i in want for key in want[i])
    assert other.ema is not None
    assert torch.equal(other.ema["0.weight"], state.model.get_parameter("0.weight") * 2)


def test_moments_lie_in_memory_as_their_parameter_does(tmp_path: Path):
    """Fused AdamW goes through both as they lie, so another layout would give each weight the moments of another."""

    def convolution(steps: int) -> TrainState:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        return run(TrainState(model=model, optimizer=optimizer), 0, steps)

    def run(state: TrainState, first: int, last: int) -> TrainState:
        for step in range(first, last):
            image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
            state.optimizer.zero_grad()
            state.model(image).square().mean().backward()
            state.optimizer.step()
        return state

    save(tmp_path / "step-00000002", convolution(2), METADATA)
    resumed = convolution(0)
    load_into(tmp_path / "step-00000002", resumed, METADATA)
    have, want = run(resumed, 2, 4).model.state_dict(), convolution(4).model.state_dict()
    assert all(torch.equal(have[name], want[name]) for name in want)


def test_a_checkpoint_has_no_pickles_and_no_temporary_files(tmp_path: Path):
    save(tmp_path / "step-00000002", trained(), METADATA)
    names = sorted(path.name for path in (tmp_path / "step-00000002").iterdir())
    assert {Path(name).suffix for name in names} == {".safetensors", ".json"}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_latest_is_the_highest_whole_step(tmp_path: Path):
    assert latest(tmp_path) is None
    for step in (500, 1000, 20000):
        save(tmp_path / f"step-{step:08d}", trained(), METADATA)
    (tmp_path / "step-00030000").mkdir()
    (tmp_path / ".step-00040000.abc").mkdir()
    assert latest(tmp_path) == tmp_path / "step-00020000"


def test_a_missing_one_is_named_with_its_neighbors(tmp_path: Path):
    save(tmp_path / "step-00000500", trained(), METADATA)
    with pytest.raises(CheckpointError, match=r"is not a checkpoint .* Beside it: step-00000500\."):
        load_into(tmp_path / "step-00000501", trained(), METADATA)
    with pytest.raises(CheckpointError, match=r"There is no other checkpoint beside it either"):
        load_into(tmp_path / "no" / "step-1", trained(), METADATA)


@pytest.mark.parametrize("name", ["model", "optimizer", "ema", "rng"])
def test_a_cut_off_file_is_named(tmp_path: Path, name: str):
    folder = tmp_path / "step-00000500"
    save(folder, trained(), METADATA)
    file = folder / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors cannot be read \(truncated\?\)"):
        load_into(folder, trained(), METADATA)
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is missing"):
        load_into(folder, trained(), METADATA)


def test_another_model_or_config_is_named(tmp_path: Path):
    folder = tmp_path / "step-00000500"
    save(folder, trained(), METADATA)
    with pytest.raises(
        CheckpointError, match=r"0\.weight has shape \(3, 2\), this model has \(5, 2\)(.|\n)*and \d more"
    ):
        load_into(folder, trained(width=5), METADATA)
    with pytest.raises(CheckpointError, match=r"another config:\n  policy\.width: 3 before, 4 now"):
        load_into(folder, trained(), {"policy": {"width": 4, "sizes": (1, 2)}})


def test_a_parameter_frozen_since_is_named(tmp_path: Path):
    folder = tmp_path / "step-00000500"
    save(folder, trained(), METADATA)
    other = trained()
    other.model.get_submodule("0").requires_grad_(False)
    other = dataclasses.replace(other, optimizer=adamw(other.model, lr=0.1, weight_decay=0.05))
    with pytest.raises(CheckpointError, match=r"this run does not train 0\.bias"):
        load_into(folder, other, METADATA)
