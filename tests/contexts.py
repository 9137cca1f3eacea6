"""Batches for every context of the policy, all of the moving square."""

from dataclasses import replace

import torch

from tap_ray.models.batch import Batch
from tap_ray.models.build import new_policy
from tap_ray.models.language import encode, word_tokenizer
from tap_ray.models.policy import PolicyConfig, TapPolicy
from tap_ray.training.batches import to_tensors
from tests.moving_square import square_window
from tests.small import SMALL

CPU = torch.device("cpu")
SENTENCES = ["go left", "go to the right"]
CROPS = ("object_crop", "place_crop", "crop_mask", "crop_px", "crop_px_mask")


def policy_with(*context: str, seed: int = 0, **config) -> TapPolicy:
    """A small policy with these contexts."""
    sizes: PolicyConfig = replace(SMALL, context=context, **config)  # type: ignore[arg-type]
    return new_policy(sizes, seed=seed, tokenizer=word_tokenizer(SENTENCES))


def batch_with(*context: str, num: int = 4, number: int = 0) -> Batch:
    """A batch with these contexts, and with a state; "play" adds windows of play under their crops, half as many."""
    window = square_window(0, number, batch=num, chunk=2, goal="goal" in context, crops="crops" in context)
    if "play" in context:
        play = square_window(1, number, batch=num // 2, chunk=2, goal=False, crops=True)
        window = replace(window, play=play)
    batch = to_tensors(window, CPU)
    if "language" in context:
        batch |= {"tokens": encode(word_tokenizer(SENTENCES), SENTENCES, 8), "sentence": torch.arange(num) % 2}
    return batch


def only(batch: Batch, *context: str) -> Batch:
    """The same batch under fewer contexts."""
    names = {"goal": ("goal_rgb",), "crops": CROPS, "language": ("tokens", "sentence")}
    gone = {name for one, keys in names.items() if one not in context for name in keys}
    gone |= {name for name in batch if name.startswith("play_") and "play" not in context}
    return {name: value for name, value in batch.items() if name not in gone}
