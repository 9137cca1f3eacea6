"""Builds a policy from a config, and saves and loads it: safetensors for weights, JSON for everything else.

final/
    model.safetensors          weights, and the statistics they were trained with
    policy.json                PolicyConfig
    spec.json                  RobotSpec
    norm_stats.json            those statistics
    vision/config.json ...     the towers' own `transformers` configs
    vlm/config.json ...        or those of an image-text model, with its tokenizer and image processor
    action_tokens/             with a head of kind "tokens"
    tokenizer.json             with an instruction as context
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig

from tap_ray import storage
from tap_ray.config import absent, from_dict, to_dict
from tap_ray.dataset.norm_stats import NormStats
from tap_ray.errors import CheckpointError, ConfigError, StorageError
from tap_ray.models.fast import load_fast
from tap_ray.models.language import text_config
from tap_ray.models.policy import OF_CAMERAS, PolicyConfig, TapPolicy, Towers, require_used
from tap_ray.models.vision import tower_config
from tap_ray.models.vlm import VlmParts, VlmPolicy
from tap_ray.models.vlm_config import without_flash
from tap_ray.models.vlm_files import read_files, save_files
from tap_ray.models.weights import load_model, write_tensors
from tap_ray.runs import read_json, write_json
from tap_ray.specs import RobotSpec

LOG = logging.getLogger(__name__)
VLM, ACTION_TOKENS = "vlm", "action_tokens"
"""Folders of a saved VLM policy."""


Network = TapPolicy | VlmPolicy
"""What learns and acts: small towers of our own, or an image-text model."""


def new_policy(
    config: PolicyConfig,
    *,
    seed: int,
    tokenizer: Tokenizer | None = None,
    parts: VlmParts | None = None,
    load_weights: bool = True,
) -> Network:
    """Build a policy with random weights; the weights of pretrained parts are fetched.

    Args:
        config: sizes.
        seed: random seed of the weights; the state of torch's global generator is restored.
        tokenizer: needed with an instruction as context.
        parts: needed with a VLM.
        load_weights: False leaves a VLM's weights random, for when a checkpoint is loaded anyway.
    """
    require_used(config)
    if "language" in config.context and tokenizer is None:
        raise ConfigError("A policy that is conditioned on instructions needs a tokenizer.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.vlm.pretrained:
            assert parts is not None
            return VlmPolicy(config, parts, load_weights=load_weights)
        return TapPolicy(config, towers_of(config, tokenizer))


def towers_of(config: PolicyConfig, tokenizer: Tokenizer | None) -> Towers:
    """The `transformers` configs of a policy's own towers; a tokenizer is needed with an instruction as context."""
    return Towers(
        vision=tower_config(config.vision, image_size=config.image_size),
        language=text_config(config.language, tokenizer, config.num_context)
        if tokenizer and "language" in config.context
        else None,
    )


@dataclass(frozen=True, kw_only=True)
class PolicyBundle:
    """A policy with all that is needed to use it."""

    network: Network
    spec: RobotSpec
    norm: NormStats
    tokenizer: Tokenizer | None
    """Tokenizer of the instructions; None without them."""


def save_bundle(folder: Path, bundle: PolicyBundle) -> None:
    """Write everything that `load_bundle` needs into `folder`; the weights last."""
    network = bundle.network
    config, tensors = network.exported() if isinstance(network, VlmPolicy) else (network.config, network.state_dict())
    with storage.atomic_write(folder, folder=True) as here:
        if isinstance(network, VlmPolicy):
            save_parts(network.parts, here)
        else:
            for name in ("vision", "language"):
                tower = getattr(network.towers, name)
                if tower is not None:
                    tower.save_pretrained(here / name)
        if bundle.tokenizer is not None:
            storage.write(here / "tokenizer.json", bundle.tokenizer.to_str(pretty=True).encode())
        write_json(here / "norm_stats.json", bundle.norm.to_json())
        write_json(here / "spec.json", bundle.spec.to_json())
        values, usual = to_dict(config), to_dict(PolicyConfig())
        write_json(here / "policy.json", {k: v for k, v in values.items() if k not in OF_CAMERAS or v != usual[k]})
    write_tensors(folder / "model.safetensors", tensors)


def save_parts(parts: VlmParts, folder: Path) -> None:
    """Write what a VLM policy needs besides its weights."""
    save_files(parts.files, folder / VLM)
    if parts.actions is not None:
        parts.actions.save(folder / ACTION_TOKENS)


def load_parts(folder: Path, config: PolicyConfig) -> VlmParts:
    """Inverse of `save_parts`.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    with storage.local_copy(folder / VLM) as here:
        files = read_files(str(here))
    sizes = {"horizon": config.chunk, "num_actions": config.num_actions}
    actions = load_fast(folder / ACTION_TOKENS, **sizes) if config.head == "tokens" else None
    return VlmParts(files=files, actions=actions)


def load_bundle(folder: Path) -> PolicyBundle:
    """Inverse of `save_bundle`.

    Raises:
        CheckpointError: the folder is missing, truncated, or made by another version.
    """
    config = load_config(folder)
    if config.vlm.pretrained:
        portable = replace(config, vlm=without_flash(config.vlm))
        policy = VlmPolicy(portable, load_parts(folder, config), load_weights=False)
        policy.config = config
    else:
        towers = Towers(**{n: _tower(folder / n) for n in ("vision", "language") if (folder / n).is_dir()})
        policy = TapPolicy(config, towers, load_weights=False)
    load_model(folder / "model.safetensors", policy)
    spec = RobotSpec.from_json(read_json(folder / "spec.json"), where=str(folder / "spec.json"))
    return PolicyBundle(
        network=policy.eval(),
        spec=spec,
        norm=NormStats.from_json(read_json(folder / "norm_stats.json"), where=folder / "norm_stats.json"),
        tokenizer=_tokenizer(folder / "tokenizer.json", needed="language" in config.context),
    )


def load_config(folder: Path) -> PolicyConfig:
    """The config of a saved policy, without its weights.

    Raises:
        CheckpointError: there is no saved policy.
    """
    if not (folder / "policy.json").is_file():
        raise CheckpointError(
            f"{folder} contains no policy (policy.json is missing). Give the folder of a finished training run."
        )
    values = read_json(folder / "policy.json")
    values.setdefault("glimpse_px", 0)  # policies from before there were glimpses
    for name in ("vlm", "tokens", *OF_CAMERAS):  # and from before there were VLMs and several cameras
        values.setdefault(name, to_dict(PolicyConfig())[name])
    config = from_dict(PolicyConfig, values, where=str(folder / "policy.json"))
    if filled := absent(config, values):
        LOG.warning(
            "%s was written by an older version of tap_ray; the current defaults were used for: %s",
            folder / "policy.json",
            filled,
        )
    return config


def _tower(folder: Path):
    try:
        with storage.local_copy(folder) as here:
            return AutoConfig.from_pretrained(here, trust_remote_code=False)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} contains no transformers config: {error}") from None


def _tokenizer(file: Path, *, needed: bool) -> Tokenizer | None:
    if not needed:
        return None
    if not file.is_file():
        raise CheckpointError(f"{file} is missing, so instructions cannot be tokenized. Copy the run folder again.")
    try:
        return Tokenizer.from_str(storage.read(file).decode())
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  the tokenizers library raises nothing narrower
        raise CheckpointError(f"{file} cannot be read (truncated?): {error}. Use an earlier checkpoint.") from None
