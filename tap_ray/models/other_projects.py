"""Loads the image-text model of another project's policy (a folder with config.json and model.safetensors) as initial
weights.

- SmolVLA (arXiv 2506.01844), as LeRobot saves it, keeps the first `num_vlm_layers` text layers of SmolVLM2.
- pi0 and pi0.5 (arXiv 2410.24164, 2504.16054), as LeRobot, openpi's conversion to PyTorch and `transformers` save them,
  have a PaliGemma. The published files contain its word embeddings as `lm_head` only.

Both have an action expert beside the model; it and what reads states and actions have no counterpart here; they are not
used, which is reported. A missing tensor is an error.
"""

import copy
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tap_ray import storage
from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import VlmFiles
from tap_ray.models.weights import read_tensors, require_same
from tap_ray.runs import read_json


@dataclass(frozen=True)
class _Format:
    """How a project saves its policies."""

    name: str
    types: tuple[str, ...]
    """The values of "type" (LeRobot) or "model_type" (transformers) in its config.json."""
    model_types: tuple[str, str]
    """Types of the image-text model and of its text model in `transformers`."""
    base: str
    """Name of that model."""
    names: tuple[tuple[str, str], ...]
    """Patterns of tensors' names -> our names, applied one after the other."""


SMOLVLA = _Format(
    "SmolVLA", ("smolvla",), ("smolvlm", "llama"), "SmolVLM2", ((r"^model\.vlm_with_expert\.vlm\.model\.", ""),)
)
PI0 = _Format(
    "pi0",
    ("pi0", "pi05"),
    ("paligemma", "gemma"),
    "PaliGemma (the first, not PaliGemma 2)",
    (
        (r"^(model\.)?paligemma_with_expert\.paligemma\.(model\.)?", ""),
        (r"^language_model\.model\.", "language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),  # LeRobot until 2025
        (r"^vision_tower\.vision_model\.", "vision_tower."),
    ),
)
WORDS = "language_model.embed_tokens.weight"
GROUP = 4
"""Parts of a left-over tensor's name that tell what it belongs to, e.g. model.vlm_with_expert.lm_expert.layers."""


def starts_from_other(config: VlmConfig) -> bool:
    """Whether another project's policy gives the initial weights."""
    return bool(config.smolvla or config.pi0)


def fitted(files: VlmFiles, config: VlmConfig) -> VlmFiles:
    """The files of the image-text model with the sizes of the policy that `config` starts from; without one as they
    are.

    Raises:
        CheckpointError: there is no such policy.
        ConfigError: the model is of another type or has fewer layers, or two policies are given.
    """
    if not starts_from_other(config):
        return files
    if config.smolvla and config.pi0:
        raise ConfigError("Give --policy.vlm.smolvla or --policy.vlm.pi0, not both.")
    project, source = _chosen(config)
    flag, types = _flag(project), (files.config.model_type, files.config.get_text_config().model_type)
    if types != project.model_types or config.weights != "pretrained":
        raise ConfigError(
            f"{flag} needs a {project.base} as --policy.vlm.pretrained (got {types[0]!r} with {types[1]!r}), and no "
            "--policy.vlm.weights."
        )
    folder = storage.to_path(source)
    about = read_json(folder / "config.json")
    kind = about.get("type", about.get("model_type", "pi0" if "paligemma_variant" in about else None))  # openpi: none
    if kind not in project.types:
        wanted = " or ".join(repr(each) for each in project.types)
        raise CheckpointError(f"{folder} contains a policy of type {kind!r}, but {flag} needs type {wanted}.")
    return replace(files, config=_cut(files, config, about)) if project is SMOLVLA else files


def load_other(model: nn.Module, config: VlmConfig) -> str:
    """Load an image-text model without its language head; returns the names of the loaded and of the unused tensors.

    Raises:
        CheckpointError: a tensor is missing or of another size; the first ones are named.
    """
    project, source = _chosen(config)
    file = storage.to_path(source) / "model.safetensors"
    want = model.state_dict()
    cure = f"{_flag(project)} needs a folder with config.json and one whole model.safetensors."
    tensors = {_our_name(name, project): (name, value) for name, value in read_tensors(file, cure=cure).items()}
    if project is PI0 and WORDS not in tensors and "lm_head.weight" in tensors:
        tensors[WORDS] = tensors.pop("lm_head.weight")
    taken = {name: value for name, (_, value) in tensors.items() if name in want}
    note = ""
    if project is PI0 and WORDS in taken:
        taken[WORDS], note = _with_all_rows(taken[WORDS], want[WORDS])
    require_same(taken, want, where=str(file))
    model.load_state_dict({name: value.to(want[name].dtype) for name, value in taken.items()})
    left = _grouped([theirs for ours, (theirs, _) in tensors.items() if ours not in want])
    return f"{project.name}: {len(want)} tensors of {file} loaded{note}; not used: {left}."


def _flag(project: _Format) -> str:
    return f"--policy.vlm.{project.name.lower()}"


def _chosen(config: VlmConfig) -> tuple[_Format, str]:
    return (SMOLVLA, config.smolvla) if config.smolvla else (PI0, config.pi0)


def _cut(files: VlmFiles, config: VlmConfig, about: Mapping[str, Any]) -> Any:
    """The config of a SmolVLM2 with as many text layers as SmolVLA keeps."""
    has, kept = files.config.get_text_config().num_hidden_layers, int(about.get("num_vlm_layers", 0))
    if kept > has:
        raise ConfigError(
            f"{config.smolvla} has {kept} text layers, but {config.pretrained} has only {has}. Give the model that it "
            f"was trained from, {about.get('vlm_model_name', 'SmolVLM2')}."
        )
    cut = copy.deepcopy(files.config)
    cut.get_text_config().num_hidden_layers = kept or has  # 0: all, in LeRobot too
    return cut


def _our_name(name: str, project: _Format) -> str:
    for pattern, ours in project.names:
        name = re.sub(pattern, ours, name)
    return name


def _with_all_rows(words_WD: Tensor, want_VD: Tensor) -> tuple[Tensor, str]:
    """openpi's embeddings end with the last word (257,152 rows), those of the hub's PaliGemma have rows for the image
    placeholder and padding behind it (257,216): these are not read, and are 0."""
    more = len(want_VD) - len(words_WD)
    if more <= 0 or words_WD.shape[1:] != want_VD.shape[1:]:
        return words_WD, ""
    return torch.cat([words_WD, words_WD.new_zeros(more, *words_WD.shape[1:])]), f" (the last {more} words are 0)"


def _grouped(names: list[str]) -> str:
    groups = Counter(".".join(name.split(".")[:GROUP]) for name in names)
    return ", ".join(f"{group} ({num})" for group, num in sorted(groups.items())) or "nothing"
