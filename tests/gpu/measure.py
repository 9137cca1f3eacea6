"""What a training step costs on a device: time, model FLOPs against the device's measured matmul rate, data, memory.

python -m tests.gpu.measure        on this machine's CPU, with a tiny model: that the numbers can be taken at all
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.dataset.windows import WindowConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.pretrain import from_play
from tap_ray.pretrain.from_play import ObjectiveConfig
from tap_ray.training.batches import to_tensors
from tap_ray.training.loop import Hooks, TrainConfig, autocast, fit
from tests.made_data import write_made_dataset
from tests.tiny_vlm import tiny_vlm

INVERSE = ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0)
WARM_UP = 2
"""Lines of metrics that do not count."""
LAYER_BYTES = 77_000_000 * 16
"""Of one layer of Qwen2.5-VL-3B's language model in training: weights, gradients and AdamW's moments in float32."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step."""

    seconds: float
    samples_per_s: float
    flops: float
    """Of products and attention, forward and backward, once each, of one step."""
    utilization: float
    """`flops` a second, as a part of the device's measured matmul rate."""
    wait: float
    """Part of the time spent waiting for data."""
    memory_gib: float
    """Most memory that torch held on the GPU; 0 on a CPU."""

    def __str__(self) -> str:
        return (
            f"{1000 * self.seconds:.1f} ms a step, {self.samples_per_s:.1f} samples/s, {self.flops / 1e12:.3f} TFLOP, "
            f"utilization {100 * self.utilization:.1f} %, data wait {100 * self.wait:.1f} %, {self.memory_gib:.1f} GiB"
        )


def matmul_rate(device: torch.device, *, size: int = 8192, repeats: int = 20) -> float:
    """FLOP/s of bfloat16 products of square matrices, the median of `repeats` after as many to warm up."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(2 * repeats):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[repeats:])


def measure(
    dataset: DatasetInfo, policy: PolicyConfig, device: torch.device, *, batch_size: int, steps: int, rate: float
) -> Step:
    """Stage 1 (inverse dynamics) on a dataset, from its files; `rate` as `matmul_rate` gives it."""
    windows = WindowConfig(horizon=2, batch_size=batch_size, holdout_every=5, group_size=8, k_max=2)
    stage = from_play.from_dataset(dataset, windows, policy=policy, config=INVERSE, seed=0)
    windows = from_play.stage_windows(windows, INVERSE, policy)
    lines: list[Mapping[str, float]] = []
    hooks = Hooks(device=device, log=lambda metrics, step: lines.append(dict(metrics)))
    how = TrainConfig(steps=steps, batch_size=batch_size, log_every=max(1, steps // 10), checkpoint_every=0)
    how = replace(how, validate_every=0, bf16="on" if device.type == "cuda" else "auto")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    fit(stage.network, iterate(dataset, windows, seed=0), stage.objective, how, hooks=hooks)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    rated = [line for line in lines if "play/samples_per_s" in line][WARM_UP:]
    speed = statistics.median(line["play/samples_per_s"] for line in rated)
    waited_s = statistics.median(line["play/data_wait_s"] for line in rated)
    batch = to_tensors(next(iterate(dataset, windows, seed=0)), device)
    with FlopCounterMode(display=False) as counter:
        with autocast(how.bf16, device):
            loss, _ = stage.objective.loss(stage.network, batch)
        loss.backward()
    seconds, flops = batch_size / speed, float(counter.get_total_flops())
    return Step(
        seconds=seconds,
        samples_per_s=speed,
        flops=flops,
        utilization=flops / seconds / rate,
        wait=waited_s / seconds,
        memory_gib=memory / 2**30,
    )


def large_vlm(folder: Path, memory_bytes: int) -> str:
    """A Qwen2.5-VL with the widths of the published 3B and as many of its 36 layers as half of the memory trains; only
    config, tokenizer and processor, since its weights are drawn (`VlmConfig.weights` "fresh")."""
    tiny_vlm("qwen2_5_vl", folder)
    config = json.loads((folder / "config.json").read_text())
    layers = max(1, min(36, memory_bytes // 2 // LAYER_BYTES))
    config["text_config"] |= {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": layers}
    config["text_config"] |= {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128}
    config["text_config"] |= {"initializer_range": 0.02, "layer_types": ["full_attention"] * layers}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config["text_config"] |= {"rope_parameters": rope}
    config["vision_config"] |= {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
    config["vision_config"] |= {"out_hidden_size": 2048, "fullatt_block_indexes": [7, 15, 23, 31]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    return str(folder)


def sizes(source: str, **vlm: str | bool) -> PolicyConfig:
    """A policy on an image-text model with drawn weights, its vision tower frozen as in the paper's Stage 1."""
    fresh = VlmConfig(pretrained=source, weights="fresh", freeze="vision", **vlm)  # type: ignore[arg-type]
    return PolicyConfig(head_width=2048, num_context=16, vlm=fresh)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    rate = matmul_rate(device, size=512, repeats=5)
    print(f"matmul, bfloat16: {rate / 1e9:.1f} GFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(write_made_dataset(Path(folder) / "play", num_episodes=24, tasks=("go left",)))
        source = tiny_vlm("qwen2_5_vl", Path(folder) / "vlm")
        for name, policy in {"small": PolicyConfig(), "image-text": sizes(source)}.items():
            print(f"{name}: {measure(dataset, policy, device, batch_size=16, steps=20, rate=rate)}")


if __name__ == "__main__":
    sys.exit(main())
