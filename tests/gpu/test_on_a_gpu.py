"""`make gpu`: Stage 1 -> Stage 2 -> evaluation on one GPU, of the small policy and of an image-text model, and what it
costs. Prints its numbers; nothing is downloaded. Under ten minutes is the aim. Not run yet."""

import time
from pathlib import Path

import pytest
import torch

from jobs import collect_play
from tap_ray.dataset.reader import open_dataset
from tap_ray.errors import ConfigError
from tap_ray.models.policy import PolicyConfig
from tap_ray.play.settings import PlayJobConfig
from tap_ray.settings import WorkersConfig
from tests.gpu.chain import KINDS, collected, require_chain
from tests.gpu.measure import Step, large_vlm, matmul_rate, measure, sizes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.cluster,
    pytest.mark.filterwarnings("default"),  # drivers and kernels have warnings of their own
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason=f"no CUDA device for torch {torch.__version__}: run `make gpu` on a machine with an NVIDIA GPU and the "
        "CUDA build of torch (docs/how-to/large_models.md)",
    ),
]
GPU = WorkersConfig(gpu="on", num_data_workers=4)


def report(text: str) -> None:
    print(f"\n[gpu] {text}", flush=True)


@pytest.fixture(scope="module")
def device() -> torch.device:
    found = torch.cuda.get_device_properties(0)
    report(f"{found.name}, {found.total_memory / 2**30:.0f} GiB, torch {torch.__version__}")
    return torch.device("cuda:0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return collected(tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_stage_1_stage_2_evaluation(kind: str, data: dict[str, Path], device: torch.device, tmp_path: Path):
    began = time.perf_counter()
    require_chain(kind, data, tmp_path, workers=GPU, gpus_per_fleet=1.0)
    report(f"{kind}: Stage 1, Stage 2 and evaluation in {time.perf_counter() - began:.0f} s")


def test_what_a_step_costs(data: dict[str, Path], device: torch.device, tmp_path: Path):
    rate = matmul_rate(device)
    report(f"matmul, bfloat16, 8192 x 8192: {rate / 1e12:.0f} TFLOP/s")
    dataset, memory = open_dataset(data["play"]), torch.cuda.get_device_properties(device).total_memory
    large = sizes(large_vlm(tmp_path / "vlm", memory), checkpoint_activations=True)
    steps: dict[str, Step] = {}
    for name, policy, batch_size, num in (("small", PolicyConfig(), 256, 200), ("3B widths", large, 16, 20)):
        steps[name] = measure(dataset, policy, device, batch_size=batch_size, steps=num, rate=rate)
        report(f"{name}, {batch_size} windows: {steps[name]}")
    assert all(0 < step.utilization < 1 for step in steps.values())


def test_play_in_one_gpu_scene(device: torch.device, tmp_path: Path):
    how = PlayJobConfig(sim="maniskill_gpu", episodes=256, robots_per_fleet=128, fleets=1, out=tmp_path / "play")
    began = time.perf_counter()
    try:
        dataset = open_dataset(collect_play.main(how))
    except ConfigError as error:
        pytest.skip(f"ManiSkill cannot play here: {error}")
    frames = int(dataset.lengths.sum())
    report(f"play, maniskill_gpu, 128 robots: {frames / (time.perf_counter() - began):.0f} frames/s, start included")
    assert len(dataset) == 256
