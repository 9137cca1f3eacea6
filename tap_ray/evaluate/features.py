"""What a trained policy's head is given, for linear probes: the features of both stages in the place they share."""

from pathlib import Path

import numpy as np
import torch

from tap_ray.errors import ConfigError
from tap_ray.evaluate.probes import ProbeData
from tap_ray.models.build import Trained, load_trained, new_policy
from tap_ray.models.language import encode

BATCH = 64
"""Frames at a time."""


def policy_features(run: Path, data: ProbeData, *, fresh: bool = False) -> np.ndarray:
    """(F, D) float32 inputs of the action head, with the context that the policy was trained with.

    A Stage 1 policy gets the frame one step ahead as goal image, a Stage 2 policy the episode's instruction.

    Args:
        run: folder of a training run.
        data: the frames.
        fresh: give the same network new weights first: what the architecture alone would show.

    Raises:
        CheckpointError: no policy there.
        ConfigError: trained on images of another size.
    """
    trained = load_trained(run / "final")
    config = trained.policy.config
    if data.rgb.shape[1:3] != (config.image_size, config.image_size):
        raise ConfigError(
            f"{run} was trained on images of {config.image_size} px, the data's are {data.rgb.shape[1]} px."
        )
    policy = new_policy(config, seed=0, tokenizer=trained.tokenizer).eval() if fresh else trained.policy
    seen: list[np.ndarray] = []
    hook = policy.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().numpy()))
    with torch.inference_mode():
        for begin in range(0, len(data.rgb), BATCH):
            policy(_batch(trained, data, slice(begin, begin + BATCH)))
    hook.remove()
    return np.concatenate(seen)


def _batch(trained: Trained, data: ProbeData, part: slice) -> dict[str, torch.Tensor]:
    batch = {"rgb": torch.from_numpy(data.rgb[part]), "state": torch.from_numpy(data.state[part])}
    if trained.tokenizer is None:
        return batch | {"goal_rgb": torch.from_numpy(data.next_rgb[part])}
    sentences, row = np.unique(np.asarray(data.sentence[part]), return_inverse=True)
    tokens = encode(trained.tokenizer, sentences.tolist(), trained.policy.config.num_context)
    return batch | {"tokens": tokens, "sentence": torch.from_numpy(row)}
