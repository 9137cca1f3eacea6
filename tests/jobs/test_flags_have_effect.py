"""No flag is accepted and then overwritten: each field of a stage's configs is what the stage uses, or is refused."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import align, pretrain
from tap_ray.dataset.mixture import alone
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import TapRayError
from tap_ray.models.policy import PolicyConfig
from tap_ray.pretrain.from_play import ObjectiveConfig
from tap_ray.stages import AlignInputs, align_shapes, align_stage, pretrain_stage
from tests.made_data import write_made_dataset

HERE = Path("x")
STAGES = {
    "align": align.AlignJobConfig(demos=HERE, init="scratch"),
    "pretrain": pretrain.PretrainConfig(data=("x",), objective=ObjectiveConfig(next_object=0, inverse_dynamics=1)),
}
OTHER: dict[str, Any] = {
    "chunk": 3, "n_action_steps": 1, "context": ("goal", "language"), "image_size": 64, "head": "flow",
    "holdout_every": 7, "glimpse_px": 16, "num_episodes": 20, "num_state": 0, "kind": "vit", "widths": (16, 32),
    "pretrained": "somewhere", "smolvla": "somewhere", "pi0": "somewhere", "weights": "fresh", "freeze": "vision",
    "dtype": "bfloat16", "attention": "eager", "camera_towers": "shared", "head_layers": "all",
}  # fmt: skip
"""Another legal value where the default plus one is none."""


def fields_of(config: Any, prefix: str = "") -> list[str]:
    """Every number, choice and switch of a config, nested ones as "vision.stem_width"."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found += fields_of(value, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]
    return found


def changed(config: Any, name: str) -> Any:
    """The config with another value for one field."""
    first, _, rest = name.partition(".")
    value = getattr(config, first)
    if rest:
        return replace(config, **{first: changed(value, rest)})
    if first in OTHER:
        return replace(config, **{first: OTHER[first]})
    return replace(config, **{first: not value if isinstance(value, bool) else value + 1})


def value_of(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return open_dataset(write_made_dataset(tmp_path_factory.mktemp("made"), num_episodes=21, tasks=("go left",)))


def used(stage: str, config: Any, dataset: DatasetInfo) -> dict[str, Any]:
    """What a stage makes of its config, as its job asks before Ray starts."""
    if stage == "align":
        built, windows = align_stage(config, AlignInputs(demos=dataset)), align_shapes(config, None)[1]
    else:
        built, windows = pretrain_stage(config, alone(dataset)), config.resolve_windows()
    network: Any = built.network
    config.require_used(windows, network.config)
    return {"policy": network.config, "windows": windows}


def outcome(stage: str, name: str, dataset: DatasetInfo) -> tuple[str, Any, Any]:
    """What the stage says against another value of one field ("" if it takes it), that value, and the one it uses."""
    try:
        config = changed(STAGES[stage], name)
        made = used(stage, config, dataset)
    except TapRayError as error:
        return str(error), None, None
    room, _, field = name.partition(".")
    return "", value_of(config, name), value_of(made[room], field)


NAMES = [*fields_of(WindowConfig(), "windows."), *fields_of(PolicyConfig(), "policy.")]
OWN_JOBS = ("policy.prior.", "policy.language.")
"""Sizes of what a motion prior and a text encoder bring along; tests of theirs hold these."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(OWN_JOBS)])
def test_each_flag_is_used_or_refused_by_name(stage: str, name: str, dataset: DatasetInfo):
    message, given, taken = outcome(stage, name, dataset)
    field = name.split(".")[-1]
    if message:
        other_value = str(OTHER.get(field, field))
        assert field.replace("_", "-") in message.replace("_", "-") or other_value in message
    else:
        assert taken == given


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "policy.chunk",
            "--policy.chunk 3 has no effect: the value is determined by --windows.horizon, and is 4. Omit it.",
        ),
        (
            "policy.image_size",
            "--policy.image-size 64 has no effect: the value is determined by the dataset's images, and is 48. ",
        ),
        (
            "windows.batch_size",
            "--windows.batch-size 65 has no effect: the value is determined by --batch-size, and is 64. Omit it.",
        ),
    ],
)
def test_what_is_said(name: str, message: str, dataset: DatasetInfo):
    assert outcome("align", name, dataset)[0].startswith(message)


def test_a_horizon_that_is_not_the_default_is_told(dataset: DatasetInfo, capsys: pytest.CaptureFixture[str]):
    assert used("pretrain", STAGES["pretrain"], dataset)["windows"].horizon == 1
    assert capsys.readouterr().out.startswith("--windows.horizon is 1: the value is determined by the motion")
    used("align", STAGES["align"], dataset)
    assert "horizon" not in capsys.readouterr().out
