"""`make gpu`: Stage 1 -> Stage 2 -> evaluation -> serving on one GPU, of the small policy and of tiny image-text
models, and what training and play cost. Prints its numbers; nothing is downloaded. Under ten minutes is the aim. Not
run yet."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from envs.maniskill.backend import require
from jobs import collect_play
from tap_ray.distributed.connect import connect
from tap_ray.doctor import PROBES, examine
from tap_ray.errors import ConfigError
from tap_ray.play.settings import PlayJobConfig
from tap_ray.settings import WorkersConfig
from tests.gpu.chain import KINDS, collected, require_chain
from tests.gpu.measure import IMAGE_PX, PLAY_GOAL, frames_per_s, largest_3b, measure, small

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
ROBOTS = 128


def report(text: str) -> None:
    print(f"\n[gpu] {text}", flush=True)


@pytest.fixture(scope="module")
def device() -> torch.device:
    found = torch.cuda.get_device_properties(0)
    report(f"{found.name}, {found.total_memory / 1e9:.0f} GB, torch {torch.__version__}")
    return torch.device("cuda:0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with connect(dashboard=False):
        yield collected(tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_stage_1_stage_2_evaluation_and_a_served_action(
    kind: str, data: dict[str, Path], device: torch.device, tmp_path: Path
):
    began = time.perf_counter()
    workers = WorkersConfig(gpu="on", num_data_workers=4)
    require_chain(KINDS[kind], data, tmp_path, workers=workers, gpus=1.0)
    report(f"{kind}: Stage 1, Stage 2, evaluation and serving in {time.perf_counter() - began:.0f} s")


def test_what_training_the_small_policy_costs(data: dict[str, Path], device: torch.device):
    measured = measure(small(data["play"], batch_size=128, steps=300), device)
    report(f"small policy: {measured}")
    assert 0 < measured.utilization < 1


def test_what_training_the_3b_preset_costs(data: dict[str, Path], device: torch.device, tmp_path: Path):
    how = PlayJobConfig(episodes=40, max_steps=30, image_size=IMAGE_PX, robot_mask=False, out=tmp_path / "play")
    memory = torch.cuda.get_device_properties(device).total_memory
    config, layers = largest_3b(collect_play.main(how), tmp_path / "vlm", memory=memory)
    measured = measure(config, device)
    report(f"preset tap_qwen2_5_vl_3b, {layers} of 36 layers, tokens {measured.plan.tokens}: {measured}")
    assert 0 < measured.utilization < 1


def missing() -> str:
    """What ManiSkill lacks here: its package, its files, or Vulkan; "" if nothing."""
    try:
        require(gpu=True)
    except ConfigError as error:
        return str(error)
    vulkan = examine([probe for probe in PROBES if probe.name == "Vulkan"])
    return "".join(f"Vulkan: {row.detail}. {row.fix}" for row in vulkan if not row.ok)


def test_play_in_one_gpu_scene(device: torch.device):
    if lacks := missing():
        pytest.skip(lacks)
    how = PlayJobConfig(sim="maniskill_gpu", explorer="contact", robots_per_fleet=ROBOTS)
    report(f"play, maniskill_gpu, {ROBOTS} robots: {frames_per_s(how):.0f} frames/s; {PLAY_GOAL}")
    flags = ["--sim", "maniskill_gpu", "--robots", str(ROBOTS), "--episodes", "1", "--rounds", "2"]
    done = subprocess.run([sys.executable, "-m", "bench.bench_simpler", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report(f"one step of {ROBOTS} robots against ManiSkill's own loop:\n{done.stdout}")
    assert "ManiSkill's own loop" in done.stdout
