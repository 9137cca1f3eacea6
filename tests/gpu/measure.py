"""What a training costs on a device: time of a step, model FLOPs against the device's measured matmul rate, memory
against `--plan`, waiting for data, and decoding; and how fast robots play.

python -m tests.gpu.measure        on this machine's CPU, at small sizes: that the numbers can be taken at all
"""

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import torch

from jobs import collect_play
from tap_ray import presets
from tap_ray.dataset.mixture import alone
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.schedule import iterate, schedule
from tap_ray.dataset.windows import WindowConfig, group_batches
from tap_ray.distributed import stream
from tap_ray.distributed.connect import connect
from tap_ray.models.known_vlms import QWEN2_5_VL_3B, known_files
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import save_files
from tap_ray.planning import shapes
from tap_ray.planning.jobs import pretraining
from tap_ray.planning.plan import Plan, Training, matmul_rate, plan, uses_bf16
from tap_ray.play.settings import PlayJobConfig
from tap_ray.pretrain.from_play import ObjectiveConfig
from tap_ray.settings import PretrainConfig, WorkersConfig
from tap_ray.stages import pretrain_stage
from tap_ray.training.loop import Hooks, TrainConfig, fit
from tap_ray.training.stage import Stage
from tap_ray.types import ALL, Window
from tests.tiny_vlm import tiny_vlm

INVERSE = ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0)
IMAGE_PX = 224
"""Side of the images of the 3B preset, for which docs/how-to/presets.md plans it."""
READY = 4
"""Number of different batches that lie in memory while steps are timed."""
LINES, WARM_UP = 10, 2
"""Lines of metrics of a timed training, and those at its beginning that do not count."""
ROOM = 0.9
"""Part of a GPU's memory that a training may plan with; torch, its workspaces and fragments have the rest."""
GOALS = (
    "goals with a large model: >= 45 % of the matmul rate, 261 samples/s a GPU, data wait <= 2 %, memory within 10 % "
    "of the plan"
)
PLAY_GOAL = "to compare with: 18,500 RGBD frames/s of ManiSkill on one GPU"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The costs of a training in one process, without DDP."""

    batch_size: int
    plan: Plan
    flops: float
    """Model FLOPs of one sample, see `model_flops`."""
    rate: float
    """FLOP/s of the device's matrix products."""
    seconds: float
    """Of a step whose batch lies ready in memory: copy to the device, augmentation, an image-text model's image
    processor, forward, backward, optimizer."""
    memory: float
    """Most bytes that torch's tensors took on the GPU in these steps; 0 on a CPU."""
    streamed_s: float
    """Seconds of a step in a training that reads its dataset through Ray Data."""
    wait: float
    """Part of that time that it waited for data."""
    decoded: float
    """Windows that one core decodes a second."""

    @property
    def samples_per_s(self) -> float:
        """Of ready batches."""
        return self.batch_size / self.seconds

    @property
    def utilization(self) -> float:
        """Model FLOPs a second as a part of the measured rate. That rate is below the datasheet's peak, so this part
        is larger than one of the peak."""
        return self.samples_per_s * self.flops / self.rate

    def __str__(self) -> str:
        planned, speed = self.plan.total, self.samples_per_s
        used = f"{self.memory / 1e9:.4g} GB, {self.memory / planned:.3f} of it" if self.memory else "only on a GPU"
        return "\n  ".join([
            f"{self.plan.state.parameters:,} parameters, batches of {self.batch_size}",
            f"step         {1000 * self.seconds:.1f} ms, {speed:.1f} samples/s",
            f"model FLOPs  {self.flops / 1e9:.4g} G a sample without recomputation: {speed * self.flops / 1e12:.4g} "
            f"TFLOP/s, {100 * self.utilization:.1f} % of the matmul rate of {self.rate / 1e12:.4g} TFLOP/s",
            f"memory       planned {planned / 1e9:.4g} GB; measured {used}",
            f"stream       {self.batch_size / self.streamed_s:.1f} samples/s, data wait {100 * self.wait:.2f} %",
            f"decoding     {self.decoded:.0f} samples/s a core: {speed / self.decoded:.2f} cores for this step's rate",
            GOALS,
        ])  # fmt: skip


def measure(config: PretrainConfig, device: torch.device) -> Measured:
    """Stage 1 on the one dataset of `config`, which is what --plan is asked about, too; `device` is one process's."""
    job, bf16 = pretraining(config), uses_bf16(config.train, device.type)
    planned, dataset, windows = plan(job, bf16=bf16), open_dataset(config.sources()[0][0]), config.resolve_windows()
    decoded = decoded_per_core(dataset, windows)
    ready = list(islice(iterate(dataset, windows, seed=0), READY))
    stage = pretrain_stage(config, alone(dataset))
    gc.collect()
    before = _count_memory(device)
    seconds, _ = timed(stage, cycle(ready), config.train, device)
    memory = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    with connect(dashboard=False):
        windows_through_ray = stream.batches(dataset, windows, seed=0, **config.workers.stream())
        streamed_s, wait = timed(stage, windows_through_ray, config.train, device)
        windows_through_ray.close()
    return Measured(
        batch_size=config.train.batch_size,
        plan=planned,
        flops=model_flops(job, planned, bf16=bf16),
        rate=matmul_rate(device.type, bf16=bf16),
        seconds=seconds,
        memory=memory,
        streamed_s=streamed_s,
        wait=wait,
        decoded=decoded,
    )


def model_flops(job: Training, planned: Plan, *, bf16: bool) -> float:
    """FLOPs of one sample's forward and backward pass, each product once, as `tap_ray.planning` counts them.

    What activation checkpointing computes again is left out, so dividing by the time and the device's rate gives the
    model's utilization (MFU) and not the hardware's; nor are there gradients of frozen parts.
    """
    policy = job.policy
    assert policy is not None
    if not policy.vlm.checkpoint_activations:
        return planned.step.flops_a_sample
    kept = replace(job, policy=replace(policy, vlm=replace(policy.vlm, checkpoint_activations=False)))
    return plan(kept, bf16=bf16, held=planned.state).step.flops_a_sample


def decoded_per_core(dataset: DatasetInfo, windows: WindowConfig) -> float:
    """Windows a second of a core's time: all of a group, whose JPEG images are each decoded once."""
    part, windows = next(schedule(dataset, windows, seed=0, shard=ALL)), replace(windows, drop_last=False)
    rate = 0.0
    for _ in range(2):  # the first time files and libraries are read
        began = time.process_time()
        num = sum(len(window.rgb) for window in group_batches(dataset, part.group, windows, seed=0, epoch=0))
        rate = num / (time.process_time() - began)
    return rate


def timed(stage: Stage, batches: Iterator[Window], how: TrainConfig, device: torch.device) -> tuple[float, float]:
    """Seconds of a step, and the part of them spent waiting for the batch: medians of a training's lines of metrics."""
    lines: list[Mapping[str, float]] = []
    hooks = Hooks(device=device, log=lambda metrics, step: lines.append(dict(metrics)))
    how = replace(how, log_every=how.steps // LINES, checkpoint_every=0, validate_every=0)
    fit(stage.network, batches, stage.objective, how, hooks=hooks, lr_scale=stage.lr_scale)
    rated = [line for line in lines if "play/samples_per_s" in line][WARM_UP:]
    seconds = statistics.median(how.windows_per_step / line["play/samples_per_s"] for line in rated)
    return seconds, statistics.median(line["play/data_wait_s"] for line in rated) / seconds


def _count_memory(device: torch.device) -> int:
    """Bytes of torch's tensors on a GPU now, from when on the largest number counts; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def small(data: Path, *, batch_size: int, steps: int) -> PretrainConfig:
    """Stage 1 of the small policy."""
    how = TrainConfig(steps=steps, batch_size=batch_size)
    return PretrainConfig(data=(str(data),), objective=INVERSE, train=how)


def image_text(data: Path, folder: Path, *, batch_size: int, steps: int) -> PretrainConfig:
    """The same of a tiny image-text model, its vision tower frozen and its activations computed again."""
    tiny = VlmConfig(pretrained=tiny_vlm("qwen2_5_vl", folder), freeze="vision", checkpoint_activations=True)
    return replace(small(data, batch_size=batch_size, steps=steps), policy=PolicyConfig(vlm=tiny, head_width=32))


def preset_3b(data: Path, folder: Path, *, layers: int | None = None, steps: int = 20) -> PretrainConfig:
    """The preset `tap_qwen2_5_vl_3b` in one process, with drawn weights and no vocabulary but the published sizes.

    Args:
        data: play with images of 224 px.
        folder: where the model's files are written.
        layers: of the language model; None for all 36. The vision tower has its 32.
        steps: number of steps.
    """
    files, preset = known_files(QWEN2_5_VL_3B), presets.tap_qwen2_5_vl_3b_pretrain()
    if layers is not None:
        depths = shapes.depths_of(files.config)._replace(text=layers)
        files = replace(files, config=shapes.shallow(files.config, depths))
    save_files(files, folder)
    vlm = replace(preset.policy.vlm, pretrained=str(folder), weights="fresh")
    how = replace(preset.train, steps=steps, log_every=1, checkpoint_every=0, validate_every=0)
    policy, workers = replace(preset.policy, vlm=vlm), WorkersConfig(num_data_workers=4)
    return replace(preset, data=(str(data),), policy=policy, train=how, workers=workers)


def largest_3b(data: Path, folder: Path, *, memory: float) -> tuple[PretrainConfig, int]:
    """The same with as many layers as the memory (bytes) of a GPU holds by --plan, and their number."""
    most = shapes.depths_of(known_files(QWEN2_5_VL_3B).config).text
    for layers in (most, 24, 16, 8, 4, 2, 1):
        config = preset_3b(data, folder / str(layers), layers=None if layers == most else layers)
        planned = plan(pretraining(config), bf16=True).total
        if planned <= ROOM * memory:
            return config, layers
    raise AssertionError(
        f"One layer of Qwen2.5-VL-3B needs {planned / 1e9:.1f} GB, but the GPU has {memory / 1e9:.1f}."
    )


def frames_per_s(config: PlayJobConfig) -> float:
    """Frames a second of one fleet's play in this process: an episode of every robot, with its reset and its encoding.
    They have played one before, so that scenes and shaders are there."""
    planned, world = collect_play.planned(config)
    player, num, rate = collect_play.fleet(planned, config.robots_per_fleet, None, world), config.robots_per_fleet, 0.0
    for first in (0, num):
        began = time.perf_counter()
        results = player.run(range(first, first + num))
        seconds = time.perf_counter() - began
        crashed = [result.reason for result in results if result.reason.startswith("crashed")]
        assert not crashed, crashed[0]
        rate = sum(len(result.episode.action) for result in results if result.episode is not None) / seconds
    player.robots.close()
    return rate


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as name, connect(dashboard=False):
        folder = Path(name)
        how = PlayJobConfig(episodes=24, max_steps=20, robot_mask=False, out=folder / "play")
        data = collect_play.main(how)
        print(f"small: {measure(small(data, batch_size=16, steps=20), device)}")
        print(f"image-text: {measure(image_text(data, folder / 'vlm', batch_size=16, steps=20), device)}")
        print(f"play, PyBullet, 2 robots: {frames_per_s(replace(how, robots_per_fleet=2)):.0f} frames/s; {PLAY_GOAL}")


if __name__ == "__main__":
    sys.exit(main())
