"""Loads the image-text model of a SmolVLA policy (LeRobot: config.json, model.safetensors) as initial weights.

SmolVLA (arXiv 2506.01844) keeps the first `num_vlm_layers` layers of SmolVLM2's text model and an action expert beside
it. Its file names the image-text model's tensors `model.vlm_with_expert.vlm.model.*`; the expert and what reads states
and actions have no counterpart here; they are not used, which is reported. A missing tensor is an error.
"""

import copy
from collections import Counter
from dataclasses import replace

from torch import Tensor, nn

from tap_ray import storage
from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import VlmFiles
from tap_ray.models.weights import read_tensors, require_same
from tap_ray.runs import read_json

BACKBONE = "model.vlm_with_expert.vlm.model."
"""Prefix of the names of the image-text model's tensors."""
GROUP = 4
"""Parts of a left-over tensor's name that tell what it belongs to, e.g. model.vlm_with_expert.lm_expert.layers."""


def cut_to_smolvla(files: VlmFiles, config: VlmConfig) -> VlmFiles:
    """The files of SmolVLM2 with as many text layers as the policy that `config.smolvla` names has; without one as
    they are.

    Raises:
        CheckpointError: there is no SmolVLA policy.
        ConfigError: the model is not a SmolVLM2, or has fewer layers.
    """
    if not config.smolvla:
        return files
    if files.config.model_type != "smolvlm" or config.weights != "pretrained":
        raise ConfigError(
            f"--policy.vlm.smolvla needs a SmolVLM2 as --policy.vlm.pretrained (got {files.config.model_type!r}), and "
            "no --policy.vlm.weights."
        )
    folder = storage.to_path(config.smolvla)
    about = read_json(folder / "config.json")
    if about.get("type") != "smolvla":
        raise CheckpointError(
            f"{folder} contains a policy of type {about.get('type')!r}, but --policy.vlm.smolvla needs type 'smolvla'."
        )
    has, kept = files.config.get_text_config().num_hidden_layers, int(about.get("num_vlm_layers", 0))
    if kept > has:
        raise ConfigError(
            f"{folder} has {kept} text layers, but {config.pretrained} has only {has}. Give the model that it was "
            f"trained from, {about.get('vlm_model_name', 'SmolVLM2')}."
        )
    cut_config = copy.deepcopy(files.config)
    cut_config.get_text_config().num_hidden_layers = kept or has  # 0: all, in LeRobot too
    return replace(files, config=cut_config)


def load_smolvla(model: nn.Module, source: str) -> str:
    """Load an image-text model without its language head; returns the names of the loaded and of the unused tensors.

    Raises:
        CheckpointError: a tensor is missing or of another size; the first ones are named.
    """
    file = storage.to_path(source) / "model.safetensors"
    tensors = read_tensors(file)
    backbone = {name.removeprefix(BACKBONE): value for name, value in tensors.items() if name.startswith(BACKBONE)}
    want = model.state_dict()
    require_same({name: value for name, value in backbone.items() if name in want}, want, where=str(file))
    model.load_state_dict({name: value.to(want[name].dtype) for name, value in backbone.items() if name in want})
    return f"SmolVLA: {len(want)} tensors of {file} loaded; not used: {_left_over(tensors, want)}."


def _left_over(tensors: dict[str, Tensor], want: dict[str, Tensor]) -> str:
    left = [name for name in tensors if name.removeprefix(BACKBONE) not in want]
    groups = Counter(".".join(name.split(".")[:GROUP]) for name in left)
    return ", ".join(f"{group} ({num})" for group, num in sorted(groups.items())) or "nothing"
