"""What a trained policy's head is given, for linear probes: the features of both stages in the place they share."""

from pathlib import Path
from typing import Sequence

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
            part = slice(begin, begin + BATCH)
            sentence = data.sentence[part]
            policy(inputs(trained, data.rgb[part], data.next_rgb[part], state=data.state[part], sentence=sentence))
    hook.remove()
    return np.concatenate(seen)


def inputs(
    trained: Trained, rgb: np.ndarray, goal_rgb: np.ndarray, *, state: np.ndarray, sentence: Sequence[str]
) -> dict[str, torch.Tensor]:
    """What the policy is given for F frames: goal images in Stage 1, instructions in Stage 2.

    Args:
        trained: the policy.
        rgb: (F, Y, X, 3) uint8.
        goal_rgb: likewise; only Stage 1 gets them.
        state: (F, S) float32.
        sentence: (F) instructions; only Stage 2 gets them.
    """
    batch = {"rgb": torch.from_numpy(rgb), "state": torch.from_numpy(state)}
    if trained.tokenizer is None:
        return batch | {"goal_rgb": torch.from_numpy(goal_rgb)}
    sentences, row = np.unique(np.asarray(sentence), return_inverse=True)
    tokens = encode(trained.tokenizer, sentences.tolist(), trained.policy.config.num_context)
    return batch | {"tokens": tokens, "sentence": torch.from_numpy(row)}
