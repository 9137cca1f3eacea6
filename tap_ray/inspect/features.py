"""Computes the input of a trained policy's head for linear probes: the features that both stages share."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping, Sequence, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tap_ray.dataset.crops import CropConfig, Crops
from tap_ray.errors import ConfigError
from tap_ray.inspect.probes import ProbeData
from tap_ray.models.batch import Batch
from tap_ray.models.build import Network, PolicyBundle, load_bundle, new_policy
from tap_ray.models.language import encode
from tap_ray.models.policy import TapPolicy, acts
from tap_ray.models.vlm import VlmPolicy
from tap_ray.models.vlm_config import without_flash

BATCH = 64
"""Number of frames per batch."""


def policy_features(run: Path, data: ProbeData, *, fresh: bool = False, camera: str = "") -> np.ndarray:
    """(F, D) float32 inputs of the action head, with the context that the policy was trained with.

    Inverse dynamics gets the frame one step ahead as its second image, and Stage 2 the episode's instruction. A policy
    that was trained on crops gets none, so that its features show what it sees without a hint of what matters.

    Args:
        run: folder of a training run.
        data: the frames.
        fresh: use the same network with random weights, which shows what the architecture alone gives (pretrained
            towers of the small policy keep their own).
        camera: of a policy with several cameras: give the key points of this one instead of all that the head reads.

    Raises:
        CheckpointError: there is no policy.
        ConfigError: it was trained on images of another size, of other cameras or of another robot, or has no key
            points.
    """
    bundle = load_bundle(run / "final")
    config = bundle.network.config
    if data.cameras != bundle.spec.cameras:
        raise ConfigError(
            f"{run} reads the cameras {', '.join(bundle.spec.cameras)}, and the dataset has "
            f"{', '.join(data.cameras)}. Give a dataset of the same robot and cameras."
        )
    size = data.rgb.shape[-3]
    if size != config.image_size:
        raise ConfigError(
            f"{run} was trained on images of {config.image_size} px, but the images of the dataset have {size} px."
        )
    if data.state.shape[1] != len(bundle.spec.state):
        raise ConfigError(
            f"{run} is of a robot with {len(bundle.spec.state)} numbers of state, and the dataset's has "
            f"{data.state.shape[1]}. Give a dataset of the same robot."
        )
    policy = _fresh(bundle) if fresh else bundle.network
    seen: list[np.ndarray] = []
    hook = _hook(policy, data.cameras.index(camera) if camera else None, seen)
    with torch.inference_mode():
        for begin in range(0, len(data.rgb), BATCH):
            part = slice(begin, begin + BATCH)
            sentence = data.sentence[part]
            policy(inputs(bundle, data.rgb[part], data.next_rgb[part], state=data.state[part], sentence=sentence))
    hook.remove()
    return np.concatenate(seen)


def _fresh(bundle: PolicyBundle) -> Network:
    """The same network with random weights, but for pretrained towers of the small policy."""
    config, network = bundle.network.config, bundle.network
    parts = network.parts if isinstance(network, VlmPolicy) else None
    config = replace(config, vlm=without_flash(config.vlm))
    return new_policy(config, seed=0, tokenizer=bundle.tokenizer, parts=parts, load_weights=False).eval()


def _hook(policy: Network, camera: int | None, seen: list[np.ndarray]) -> RemovableHandle:
    """Collect in `seen` what the head reads of each batch, or the key points of one camera, until it is removed."""
    if camera is None:
        return policy.last.register_forward_pre_hook(lambda _, given: seen.append(given[0].float().numpy()))
    if not isinstance(policy, TapPolicy):
        raise ConfigError("Only the small policy has key points of each camera; a VLM policy reads them together.")
    part = policy.keypoints if camera == 0 else policy.cameras.keypoints[camera - 1]

    def keep(_part: nn.Module, given: Any, found: tuple[Tensor, Tensor]) -> None:
        images = len(given[0]) // (1 if acts(policy.config) else 2)  # behind the present images come the second ones
        seen.append(found[0][:images].float().numpy())

    return part.register_forward_hook(keep)


def inputs(
    bundle: PolicyBundle,
    rgb: np.ndarray,
    goal_rgb: np.ndarray,
    *,
    state: np.ndarray,
    sentence: Sequence[str],
    crops: Mapping[str, np.ndarray] | None = None,
) -> Batch:
    """Build the policy's input for F frames: images with the second image of inverse dynamics, crops, or instructions.

    Args:
        bundle: the policy.
        rgb: (F, Y, X, 3) uint8, of V > 1 cameras (F, V, Y, X, 3).
        goal_rgb: likewise; only inverse dynamics gets them.
        state: (F, S) float32.
        sentence: (F) instructions; only Stage 2 gets them.
        crops: "object_crop", "place_crop" (F, C, C, 3) uint8 and "crop_mask" (F, 2) bool; only a policy that was
            trained on them gets them. None: it gets none.
    """
    batch = _by_camera("", rgb) | cast(Batch, {"state": torch.from_numpy(state)})
    if bundle.tokenizer is None and not acts(bundle.network.config):
        return batch | _by_camera("goal_", goal_rgb)
    if bundle.tokenizer is None:
        given = no_crops(len(rgb)) if crops is None else crops
        return batch | cast(Batch, {name: torch.from_numpy(value) for name, value in given.items()})
    sentences, row = np.unique(np.asarray(sentence), return_inverse=True)
    tokens = encode(bundle.tokenizer, sentences.tolist(), bundle.network.config.num_context)
    return batch | {"tokens": tokens, "sentence": torch.from_numpy(row)}


def _by_camera(prefix: str, rgb: np.ndarray) -> Batch:
    parts = {"rgb": rgb} if rgb.ndim == 4 else {"rgb": rgb[:, 0], "extra_rgb": rgb[:, 1:]}
    return cast(Batch, {f"{prefix}{name}": torch.from_numpy(part) for name, part in parts.items()})


def no_crops(num: int) -> dict[str, np.ndarray]:
    """Empty crops, for frames without any."""
    size = CropConfig().size_px
    images = {name: np.zeros((num, size, size, 3), np.uint8) for name in ("object_crop", "place_crop")}
    return images | {"crop_mask": np.zeros((num, 2), bool)}


def crops_of(crops: Crops) -> dict[str, np.ndarray]:
    """The crops of an episode's T frames: those of the bout of contact that a frame leads to or belongs to."""
    arrays, led = no_crops(len(crops.bout_T)), crops.bout_T >= 0
    bout = crops.bout_T[led]
    arrays["object_crop"][led], arrays["place_crop"][led] = crops.object_rgb[bout], crops.place_rgb[bout]
    arrays["crop_mask"][led] = np.stack([np.ones_like(crops.has_place), crops.has_place], axis=1)[bout]
    return arrays
