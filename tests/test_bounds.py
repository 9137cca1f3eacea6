"""Every number of every config of every job: NaN, infinity and -1 are refused by name, or listed here as legal."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tap_ray import bounds, config
from tap_ray.errors import ConfigError
from tap_ray.sweep.plan import AshaConfig
from tap_ray.training.loop import TrainConfig
from tests import job_configs

CONFIGS: dict[str, Any] = {**job_configs.CONFIGS, "asha": AshaConfig()}
MINUS_ONE_IS_LEGAL = {
    "seed",  # another seed
    "max_failures",  # replaced for ever
    "writers",  # as many as the fleets need
    "bounds_low_m",  # a corner of the box, in the base frame
    "grasp_height_m",  # below an object's center
}


def numbers(owner: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names from the job's config down to a number or a tuple of them, its value)."""
    for field in dataclasses.fields(owner):
        value, here = getattr(owner, field.name), (*way, field.name)
        first = value[0] if isinstance(value, tuple) and value else value
        if dataclasses.is_dataclass(value):
            yield from numbers(value, here)
        elif isinstance(first, (int, float)) and not isinstance(first, bool):
            yield here, value


def changed(owner: Any, way: tuple[str, ...], value: Any) -> Any:
    """A config with another value at the end of the way."""
    inner = value if len(way) == 1 else changed(getattr(owner, way[0]), way[1:], value)
    return dataclasses.replace(owner, **{way[0]: inner})


@pytest.mark.parametrize("job", CONFIGS)
def test_a_number_out_of_range_is_refused_by_its_name(job: str):
    for way, value in numbers(CONFIGS[job]):
        for wrong in (math.nan, math.inf, -math.inf, -1):
            wrong_value = (wrong, *value[1:]) if isinstance(value, tuple) else wrong
            if wrong == -1 and way[-1] in MINUS_ONE_IS_LEGAL:
                bounds.check(changed(CONFIGS[job], way, wrong_value))
                continue
            with pytest.raises(ConfigError) as refused:
                bounds.check(changed(CONFIGS[job], way, wrong_value))
            named = re.sub(r"[-_]", " ", str(refused.value))
            assert way[-1].replace("_", " ").removesuffix(" probability") in named, f"{'.'.join(way)} = {wrong:g}"


def test_the_defaults_are_legal_and_no_row_of_the_table_is_idle():
    names = set()
    for owner in CONFIGS.values():
        bounds.check(owner)
        for way, _ in numbers(owner):
            inner = owner
            for name in way[:-1]:
                inner = getattr(inner, name)
            cls, name = type(inner), way[-1]
            names |= {name, f"{cls.__name__}.{name}"}
    of_files = {"sweep_seed", "samples", "TrialRow.logged_step", "Mapping.fps", "Mapping.control_hz"}
    of_files |= {"Mapping.origin_m", "Mapping.tool_quat"}
    of_files |= {"Numbers.open", "Numbers.closed", "Numbers.scale"}  # of a sweep and of an import's mapping
    assert of_files >= set(bounds.BOUNDS) - names


@pytest.mark.parametrize(
    ("way", "wrong", "message"),
    [
        (("train", "clip"), -1.0, "--clip must be at least 0; got -1."),
        (("train", "lr"), math.nan, "--lr must be more than 0 and finite; got nan."),
        (("train", "warmup_fraction"), 1.5, "--warmup-fraction must be in [0, 1]; got 1.5."),
        (("train", "betas"), (0.9, 1.0), "--betas must be in [0, 1); got 1."),
        (("workers", "gpus"), math.nan, "--gpus must be at least 0 and finite; got nan."),
        (("workers", "stream_memory_mb"), -5, "--stream-memory-mb must be at least 1; got -5."),
        (("workers", "max_failures"), -7, "--max-failures must be at least -1; got -7."),
        (("policy", "vision", "vit_width"), 0, "--policy.vision.vit-width must be at least 1; got 0."),
        (
            ("align", "pretrained_lr_scale"),
            math.inf,
            "--align.pretrained-lr-scale must be at least 0 and finite; got inf.",
        ),
    ],
)
def test_the_flag_is_named_as_it_is_typed(way: tuple[str, ...], wrong: Any, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        bounds.check(changed(CONFIGS["align"], way, wrong))


def test_every_wrong_number_is_named_at_once():
    wrong = changed(changed(CONFIGS["align"], ("train", "clip"), -1.0), ("train", "lr"), 0.0)
    with pytest.raises(ConfigError) as refused:
        bounds.check(wrong)
    assert str(refused.value).splitlines() == [
        "--lr must be more than 0; got 0.",
        "  --clip must be at least 0; got -1.",
    ]


def test_a_file_is_held_to_the_same_bounds():
    with pytest.raises(ConfigError, match=re.escape("sweep.yaml: lr must be more than 0 and finite; got nan.")):
        config.from_dict(TrainConfig, {"lr": math.nan}, where="sweep.yaml")


def test_zero_is_legal_where_it_turns_something_off():
    for way in (("train", "clip"), ("train", "weight_decay"), ("workers", "gpus")):
        bounds.check(changed(CONFIGS["align"], way, 0.0))
        with pytest.raises(ConfigError, match="must be at least 0"):
            bounds.check(changed(CONFIGS["align"], way, -0.5))
