"""What the measurements of `make gpu` compute without a GPU: the sizes of the 3B preset, model FLOPs, and the wait."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tap_ray import presets
from tap_ray.dataset.mixture import alone
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.models.prompt import Row, prompt
from tap_ray.planning import shapes
from tap_ray.planning.jobs import pretraining
from tap_ray.planning.plan import plan, state
from tap_ray.settings import PretrainConfig
from tap_ray.stages import pretrain_stage
from tap_ray.types import Window
from tests.gpu.measure import IMAGE_PX, image_text, model_flops, preset_3b, small, timed
from tests.made_data import write_made_dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_dataset(tmp_path_factory.mktemp("made") / "play", num_episodes=21, tasks=("go left",))


def before_data(config: PretrainConfig) -> PretrainConfig:
    """As `--plan --policy.image-size 224` has it."""
    return replace(config, data=(), policy=replace(config.policy, image_size=IMAGE_PX))


def test_the_measured_3b_is_the_planned_preset(tmp_path: Path):
    """Two images of 16 x 16 patches, four patches a token; as many other tokens and parameters as planned."""
    planned = pretraining(before_data(presets.tap_qwen2_5_vl_3b_pretrain()))
    measured = pretraining(before_data(preset_3b(tmp_path / "no data", tmp_path / "vlm")))
    assert planned.policy is not None
    assert planned.parts is not None
    assert measured.policy is not None
    assert measured.parts is not None
    assert state(measured) == state(planned)
    images, others = shapes.tokens_of(planned.parts.files, planned.policy)
    assert images == 2 * 16 * 16 / 4
    image, files = np.zeros((IMAGE_PX, IMAGE_PX, 3), np.uint8), measured.parts.files
    given = prompt(files, [Row([image, image])], query=files.config.text_config.vocab_size)
    assert given["input_ids"].shape == (1, images + others)
    assert (given["input_ids"] == files.config.image_token_id).sum() == images
    assert len(given["pixel_values"]) == 2 * 16 * 16
    assert replace(measured.policy, vlm=planned.policy.vlm) == planned.policy
    assert measured.train.batch_size == planned.train.batch_size


def test_model_flops_leave_out_what_is_computed_again(data: Path, tmp_path: Path):
    config = image_text(data, tmp_path / "vlm", batch_size=4, steps=10)
    vlm = replace(config.policy.vlm, checkpoint_activations=False)
    kept = plan(pretraining(replace(config, policy=replace(config.policy, vlm=vlm))), bf16=False)
    again = pretraining(config)
    planned = plan(again, bf16=False)
    assert model_flops(again, planned, bf16=False) == kept.step.flops_a_sample < planned.step.flops_a_sample


def test_waiting_for_data_is_no_part_of_a_step_over_ready_batches(data: Path):
    config = small(data, batch_size=4, steps=10)
    dataset, windows = open_dataset(data), config.resolve_windows()
    ready = list(islice(iterate(dataset, windows, seed=0), 2))
    stage = pretrain_stage(config, alone(dataset))

    def slow() -> Iterator[Window]:
        for window in cycle(ready):
            time.sleep(0.2)
            yield window

    seconds, wait = timed(stage, cycle(ready), config.train, CPU)
    slow_s, slow_wait = timed(stage, slow(), config.train, CPU)
    assert wait * seconds < 0.1
    assert 0.2 <= slow_wait * slow_s <= slow_s
