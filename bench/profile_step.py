"""Profiles where the time of a training step goes on this machine: torch.profiler over a few steps of each stage.

    python -m bench.profile_step --steps 10
    python -m bench.profile_step --steps 10 --vlm qwen2_5_vl

The batches lie ready, so only the step is seen. With `--vlm`: Stage 2 of the tests' tiny image-text model with random
weights. Its own computing is small, so one sees what is done beside it: prompts, and numbers that Python reads back.
Without, also in turns within the run, what stands in a step and what stood there before: the averaged weights one by
one and all at once, the question for bfloat16, AdamW's three ways.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
import tyro
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from tap_ray.align.objective import BehaviorCloning
from tap_ray.models.build import Network, new_policy
from tap_ray.models.language import encode, word_tokenizer
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.precision import has_bf16
from tap_ray.models.prompt import instruction_tokenizer
from tap_ray.models.vlm import VlmParts
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import read_files
from tap_ray.pretrain.from_play import FromPlay, ObjectiveConfig
from tap_ray.rng import generator
from tap_ray.training.loop import Objective, TrainConfig, fit
from tap_ray.types import Window
from tests.tiny_vlm import tiny_vlm

SENTENCES = ["put the carrot on the plate", "put the spoon on the towel"]
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 10
    batch_size: int = 32
    image_size: int = 96
    """Side of the images, px."""
    rounds: int = 7
    """Number of rounds of each comparison."""
    rows: int = 12
    """Lines of a profile."""
    vlm: Literal["", "smolvlm", "qwen2_5_vl", "qwen3_vl", "paligemma"] = ""
    """Architecture of an image-text model; empty: the small policy."""


def window(config: Config) -> Window:
    """Random numbers in the shape of what both stages read."""
    rng, num, size = generator(0, "profile"), config.batch_size, config.image_size

    def images(side: int) -> np.ndarray:
        return rng.integers(0, 255, (num, side, side, 3), dtype=np.uint8)

    return Window(
        rgb=images(size),
        goal_rgb=None,
        k=np.zeros(num, np.int64),
        state=np.zeros((num, 7), np.float32),
        action=rng.uniform(-1, 1, (num, 4, 7)).astype(np.float32),
        action_mask=np.ones((num, 4), bool),
        reach=rng.uniform(-1, 1, (num, 13)).astype(np.float32),
        reach_mask=np.ones((num, 13), bool),
        task_index=rng.integers(0, 2, num),
        object_crop=images(32),
        place_crop=images(32),
        crop_mask=np.ones((num, 2), bool),
        crop_px=np.full((num, 2, 2), size / 2, np.float32),
        crop_px_mask=np.ones((num, 2), bool),
    )


def stages(config: Config) -> dict[str, tuple[Network, Objective]]:
    """Both stages' networks and objectives, at the sizes that are usual."""
    usual = PolicyConfig(image_size=config.image_size, chunk=4, num_actions=7, num_reach=13, num_state=7)
    words = word_tokenizer(SENTENCES)
    play = new_policy(replace(usual, context=("crops",)), seed=0)
    demos = new_policy(replace(usual, context=("language",)), seed=0, tokenizer=words)
    tokens_UL = encode(words, SENTENCES, usual.num_context)
    return {
        "Stage 1": (play, FromPlay(config=ObjectiveConfig(), policy=play)),
        "Stage 2": (demos, BehaviorCloning(policy=demos, tokens_UL=tokens_UL)),
    }


def vlm_stage(config: Config, folder: Path) -> tuple[Network, Objective]:
    """Stage 2 of a tiny image-text model."""
    policy = PolicyConfig(
        image_size=config.image_size, num_state=7, vlm=VlmConfig(pretrained=tiny_vlm(config.vlm, folder))
    )
    files = read_files(policy.vlm.pretrained)
    words = instruction_tokenizer(files)
    network = new_policy(policy, seed=0, tokenizer=words, parts=VlmParts(files=files))
    return network, BehaviorCloning(policy=network, tokens_UL=encode(words, SENTENCES, policy.num_context))


def main(config: Config) -> None:
    torch.set_num_threads(1)
    how = TrainConfig(
        steps=config.steps, batch_size=config.batch_size, log_every=config.steps, checkpoint_every=0, validate_every=0,
        ema_decay=0.99,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        found = {config.vlm: vlm_stage(config, Path(folder))} if config.vlm else stages(config)
    for name, (network, objective) in found.items():
        fit(network, cycle([window(config)]), objective, replace(how, steps=2, log_every=2))  # warm
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            fit(network, cycle([window(config)]), objective, how)
        print(f"\n{name}: {config.steps} steps, {config.batch_size} windows of {config.image_size} px, one thread")
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=config.rows, max_name_column_width=48))
        counts = {row.key: row.count // config.steps for row in seen.key_averages()}
        print(f"a step's aten::item: {counts.get('aten::item', 0)}, aten::nonzero: {counts.get('aten::nonzero', 0)}")
        took = []
        for _ in range(config.rounds if config.vlm else 0):
            began = time.perf_counter()
            fit(network, cycle([window(config)]), objective, how)
            took.append(1000 * (time.perf_counter() - began) / config.steps)
        if took:
            print(f"ms a step without the profiler, {config.rounds} rounds: {', '.join(f'{ms:.0f}' for ms in took)}")
    if not config.vlm:
        _compare(found["Stage 1"][0], config.rounds)


def _compare(network: Network, rounds: int) -> None:
    """Medians of the rounds' ratios, each way in turn."""
    weights = [value.detach() for value in network.parameters()]
    average = [value.clone() for value in weights]
    for value in network.parameters():
        value.grad = torch.ones_like(value)
    parameters = list(network.parameters())
    optimizers = {
        "a loop": AdamW(parameters, foreach=False),
        "foreach": AdamW(parameters, foreach=True),
        "fused": AdamW(parameters, fused=True),
    }

    def one_by_one() -> None:
        for kept, value in zip(average, weights, strict=True):
            kept.lerp_(value, 0.01)

    ways: dict[str, Callable[[], object]] = {
        "average, one by one": one_by_one,
        "average, all at once": lambda: torch._foreach_lerp_(average, weights, 0.01),  # pyright: ignore[reportPrivateImportUsage]
        "bfloat16? reading /proc/cpuinfo": lambda: has_bf16.__wrapped__(CPU),
        "bfloat16? remembered": lambda: has_bf16(CPU),
        **{f"AdamW, {kind}": optimizer.step for kind, optimizer in optimizers.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            began = time.perf_counter()
            for _ in range(10):
                call()
            times[name].append((time.perf_counter() - began) / 10)
    print(f"\n{rounds} rounds of 10 calls, ms a call:")
    for name, values in times.items():
        print(f"  {name:34} {1000 * statistics.median(values):8.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
