"""Computes the input of a trained policy's head for linear probes: the features that both stages share."""

from pathlib import Path
from typing import Mapping, Sequence, cast

import numpy as np
import torch

from tap_ray.dataset.crops import CropConfig, Crops
from tap_ray.errors import ConfigError
from tap_ray.inspect.probes import ProbeData
from tap_ray.models.batch import Batch
from tap_ray.models.build import PolicyBundle, load_bundle, new_policy
from tap_ray.models.language import encode
from tap_ray.models.policy import acts

BATCH = 64
"""Number of frames per batch."""


def policy_features(run: Path, data: ProbeData, *, fresh: bool = False) -> np.ndarray:
    """(F, D) float32 inputs of the action head, with the context that the policy was trained with.

    Inverse dynamics gets the frame one step ahead as its second image, and Stage 2 the episode's instruction. A policy
    that was trained on crops gets none, so that its features show what it sees without being told what to look for.

    Args:
        run: folder of a training run.
        data: the frames.
        fresh: use the same network with random weights, which shows what the architecture alone gives.

    Raises:
        CheckpointError: there is no policy.
        ConfigError: it was trained on images of another size.
    """
    bundle = load_bundle(run / "final")
    config = bundle.network.config
    require_one_camera(bundle, run)
    if data.rgb.shape[1:3] != (config.image_size, config.image_size):
        raise ConfigError(
            f"{run} was trained on images of {config.image_size} px, but the images of the dataset have "
            f"{data.rgb.shape[1]} px."
        )
    policy = new_policy(config, seed=0, tokenizer=bundle.tokenizer).eval() if fresh else bundle.network
    seen: list[np.ndarray] = []
    hook = policy.last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().numpy()))
    with torch.inference_mode():
        for begin in range(0, len(data.rgb), BATCH):
            part = slice(begin, begin + BATCH)
            sentence = data.sentence[part]
            policy(inputs(bundle, data.rgb[part], data.next_rgb[part], state=data.state[part], sentence=sentence))
    hook.remove()
    return np.concatenate(seen)


def require_one_camera(bundle: PolicyBundle, run: Path) -> None:
    """Raise a ConfigError for a policy with several cameras, because only the first camera's images are available
    here."""
    if len(bundle.spec.cameras) > 1:
        raise ConfigError(
            f"{run} reads the cameras {', '.join(bundle.spec.cameras)}; jobs.saliency and jobs.probe support policies "
            "of one camera only. Evaluate this one with jobs.evaluate, which writes videos."
        )


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
        rgb: (F, Y, X, 3) uint8.
        goal_rgb: likewise; only inverse dynamics gets them.
        state: (F, S) float32.
        sentence: (F) instructions; only Stage 2 gets them.
        crops: "object_crop", "place_crop" (F, C, C, 3) uint8 and "crop_mask" (F, 2) bool; only a policy that was
            trained on them gets them. None: it is not told what to look for.
    """
    batch: Batch = {"rgb": torch.from_numpy(rgb), "state": torch.from_numpy(state)}
    if bundle.tokenizer is None and not acts(bundle.network.config):
        return batch | {"goal_rgb": torch.from_numpy(goal_rgb)}
    if bundle.tokenizer is None:
        told = no_crops(len(rgb)) if crops is None else crops
        return batch | cast(Batch, {name: torch.from_numpy(value) for name, value in told.items()})
    sentences, row = np.unique(np.asarray(sentence), return_inverse=True)
    tokens = encode(bundle.tokenizer, sentences.tolist(), bundle.network.config.num_context)
    return batch | {"tokens": tokens, "sentence": torch.from_numpy(row)}


def no_crops(num: int) -> dict[str, np.ndarray]:
    """Empty crops, for frames without any."""
    size = CropConfig().size_px
    images = {name: np.zeros((num, size, size, 3), np.uint8) for name in ("object_crop", "place_crop")}
    return images | {"crop_mask": np.zeros((num, 2), bool)}


def crops_of(crops: Crops) -> dict[str, np.ndarray]:
    """The crops of an episode's T frames: those of the bout of contact that a frame leads to or belongs to."""
    told, led = no_crops(len(crops.bout_T)), crops.bout_T >= 0
    bout = crops.bout_T[led]
    told["object_crop"][led], told["place_crop"][led] = crops.object_rgb[bout], crops.place_rgb[bout]
    told["crop_mask"][led] = np.stack([np.ones_like(crops.has_place), crops.has_place], axis=1)[bout]
    return told
