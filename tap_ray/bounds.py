"""Holds the legal range of every number in every config in one table, which is checked before anything starts.

A number without a row in the table must be finite and at least 0. NaN and infinity are never legal. How the fields of a
config must fit each other is checked in its `__post_init__`, which repeats none of these ranges.
"""

import dataclasses
import math
import typing
from typing import Any, Iterator

from tap_ray.errors import ConfigError

POSITIVE, FROM_1, SHARE, ANY = "(0, inf)", "[1, inf)", "[0, 1]", "(-inf, inf)"

BOUNDS: dict[str, str] = {
    "seed": ANY,  # any integer is a valid seed
    "sweep_seed": ANY,
    **dict.fromkeys(("steps", "batch_size", "log_every", "group_size", "image_size", "max_steps", "every"), FROM_1),
    **dict.fromkeys(("episodes", "robots_per_fleet", "round_episodes", "num_samples", "horizon", "chunk"), FROM_1),
    "ProbeConfig.episodes": "[0, inf)",  # 0: all
    "TrainConfig.gradient_accumulation_steps": FROM_1,
    "TrainConfig.lr": POSITIVE,
    "TrainConfig.betas": "[0, 1)",
    "TrainConfig.warmup_fraction": SHARE,
    "TrainConfig.ema_decay": "[0, 1)",
    "AugmentConfig.jitter": SHARE,
    **{f"WorkersConfig.{name}": FROM_1 for name in ("num_workers", "threads", "num_data_workers", "stream_memory_mb")},
    **dict.fromkeys(("PlayJobConfig.writers", "DemosJobConfig.writers"), "[-1, inf)"),  # -1: as many as the fleets need
    "WorkersConfig.max_failures": "[-1, inf)",  # -1: always
    **{f"PolicyConfig.{name}": FROM_1 for name in ("n_action_steps", "num_actions", "num_context", "context_width")},
    **{f"PolicyConfig.{name}": FROM_1 for name in ("map_width", "head_width")},
    "WindowConfig.segment": FROM_1,
    "PolicyConfig.num_keypoints": "[2, inf)",  # the first two point at the object and at the place
    **{f"VisionConfig.{name}": FROM_1 for name in ("stem_width", "patch_px", "vit_width", "vit_layers")},
    **{f"LanguageConfig.{name}": FROM_1 for name in ("width", "num_layers")},
    **{f"PriorConfig.{name}": FROM_1 for name in ("latent", "width", "num_layers", "num_heads", "num_steps")},
    **{f"PriorConfig.{name}": FROM_1 for name in ("num_actions", "num_states")},
    "AlignConfig.play_batch": FROM_1,
    "TokensConfig.vocabulary": FROM_1,
    "TokensConfig.scale": POSITIVE,
    "VlmConfig.lora_alpha": POSITIVE,
    "VlmConfig.pad_tokens": FROM_1,
    "jpeg_quality": "[1, 95]",
    "ExportConfig.crf": "[0, 51]",
    "DemosJobConfig.success_hold_steps": FROM_1,
    "SaliencyConfig.goal_offset": FROM_1,
    "RandomizeConfig.cloth_probability": SHARE,
    "RandomizeConfig.cloth_saturation": SHARE,
    "MotionConfig.bounds_low_m": ANY,  # the base frame has its origin within the table
    "MotionConfig.bounds_high_m": ANY,
    "MotionConfig.speed_min": "(0, 1]",
    "MotionConfig.speed_max": "(0, 1]",
    "MotionConfig.max_lag_m": POSITIVE,
    "MotionConfig.max_lag_rad": POSITIVE,
    **dict.fromkeys(("SafePosesConfig.leaf_m", "CuriousConfig.leaf_m", "CuriousConfig.temperature"), POSITIVE),
    "CuriousConfig.num_candidates": FROM_1,
    "UniformConfig.scale": "(0, 1]",
    **{f"ContactConfig.{name}_probability": SHARE for name in ("free", "push", "aligned", "place", "keep", "onto")},
    "VisualConfig.min_blob_px": FROM_1,
    "ContactConfig.grasp_height_m": ANY,  # may be below an object's center
    "InferenceConfig.batch": FROM_1,
    "ServeConfig.port": "[0, 65535]",
    **{f"ServeConfig.{name}": FROM_1 for name in ("sessions", "batch", "replicas", "idle_s")},
    **{f"PipelineConfig.{name}_steps": FROM_1 for name in ("pretrain", "align")},
    **{f"PipelineConfig.{name}": FROM_1 for name in ("play_episodes", "demos_per_task")},
    "TrialRow.logged_step": "[-1, inf)",  # -1: no line yet
    **{f"Numbers.{name}": ANY for name in ("scale", "closed", "open")},
    "Mapping.origin_m": ANY,
    "Mapping.tool_quat": ANY,
    "Mapping.control_hz": POSITIVE,
    "Mapping.fps": POSITIVE,
    "AshaConfig.grace_steps": FROM_1,
    "AshaConfig.finalists": FROM_1,
    "AshaConfig.reduction_factor": "(1, inf)",
}
"""Name of a field, or Class.field where the name is ambiguous -> its interval; [ and ] include the end."""


def check(config: Any) -> None:
    """Raise a ConfigError that names each flag of a config, nested configs included, whose number is out of range."""
    violations = list(_outside(config, ""))
    if violations:
        raise ConfigError("\n  ".join([f"--{each}" for each in violations]))


def check_own(config: Any, where: str) -> None:
    """Raise a ConfigError for a number of this config that is out of range, without its nested configs. `where` names
    the source."""
    for name, value in _numbers(config):
        if reason := _refused(config, name, value):
            raise ConfigError(f"{where}: {name} {reason}")


def legal(owner: type, name: str) -> str:
    """The legal interval of a field of a config class."""
    keys = (f"{owner.__name__}.{name}", name)
    return next((BOUNDS[key] for key in keys if key in BOUNDS), "[0, inf)")


def flag_of(prefix: str, field: dataclasses.Field[Any], hint: Any) -> str:
    """The flag of a field on the command line below `prefix`; a field with tyro's arg(name="") adds no name of its
    own."""
    unnamed = any(getattr(each, "name", None) == "" for each in getattr(hint, "__metadata__", ()))
    name = "" if unnamed else field.name.replace("_", "-")
    return ".".join(part for part in (prefix, name) if part)


def _outside(config: Any, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(config.__class__, include_extras=True)
    flags = {field.name: flag_of(prefix, field, hints[field.name]) for field in dataclasses.fields(config)}
    for name, flag in flags.items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _outside(value, flag)
    for name, value in _numbers(config):
        if reason := _refused(config, name, value):
            yield f"{flags[name]} {reason}"


def _numbers(config: Any) -> Iterator[tuple[str, float]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values = typing.cast(tuple[Any, ...], value if isinstance(value, tuple) else (value,))
        for each in values:
            if isinstance(each, (int, float)) and not isinstance(each, bool):
                yield field.name, each


def _refused(config: Any, name: str, value: float) -> str:
    interval = legal(config.__class__, name)
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if math.isfinite(value) and above and below:
        return ""
    finite = "" if math.isfinite(value) else " and finite"
    return f"{_words(interval, low, high)}{finite if math.isinf(high) and math.isfinite(low) else ''}; got {value:g}."


def _words(interval: str, low: float, high: float) -> str:
    if math.isinf(low):
        return "must be a finite number"
    if math.isinf(high):
        return f"must be {'more than' if interval[0] == '(' else 'at least'} {low:g}"
    return f"must be in {interval[0]}{low:g}, {high:g}{interval[-1]}"
