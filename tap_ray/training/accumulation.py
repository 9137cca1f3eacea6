"""Accumulates gradients over several batches, so that their sum equals the gradient of one batch of all samples.

A mean over the entries that a mask leaves is a ratio, and the mean of ratios is not the ratio of the sums. So before
any batch is learned from, an objective counts the entries of each of its means (`Counted`), and each batch's mean
enters with its share of all entries. What has no count is a mean over rows, of which batches have equally many.

Not the same as one large batch: BatchNorm, which sees one batch at a time, and what is drawn (augmentation, noise of
flow matching), which follows from each batch's own number. Several workers average their steps as they are, so batches
of different workers weigh the same whatever their masks.
"""

import contextlib
from typing import Any, Protocol, Sequence, runtime_checkable

import torch
from torch import Tensor, nn

from tap_ray.models.batch import Batch, MotionBatch
from tap_ray.models.build import Network
from tap_ray.models.token_head import TokenHead

SHARE = "share_"


@runtime_checkable
class Counted(Protocol):
    """An objective that reports over how many entries each of its means is taken."""

    def counts(self, batch: Any) -> dict[str, Tensor]:
        """Name of each term of the loss -> number of entries of this batch over which it is a mean, a scalar."""
        ...


def shares(objective: Any, batches: Sequence[Batch | MotionBatch]) -> Sequence[Batch | MotionBatch]:
    """Each batch with "share_<part>" (), how many times its mean counts as much as on average; one alone as it is."""
    if len(batches) == 1 or not isinstance(objective, Counted):
        return batches
    counts = [objective.counts(batch) for batch in batches]
    for batch, batch_counts in zip(batches, counts, strict=True):
        for name, count in batch_counts.items():
            total = torch.stack([each[name] for each in counts]).sum()
            batch[f"{SHARE}{name}"] = len(batches) * count / total.clamp_min(1)
    return batches


def shared(batch: Batch | MotionBatch, name: str, mean: Tensor) -> Tensor:
    """A term of the loss scaled by its batch's share; the mean itself for a single batch."""
    return mean * batch[f"{SHARE}{name}"] if f"{SHARE}{name}" in batch else mean


def num_predicted(policy: Network, batch: Batch, mask_NH: Tensor) -> Tensor:
    """() number of entries of an action head's mean: steps where `mask_NH` is True, or their tokens."""
    head = getattr(policy, "head", None)  # a policy with inverse dynamics only has none
    if isinstance(head, TokenHead):
        return (head.targets(policy.action_scale(batch["action"]), mask_NH) >= 0).sum()
    return mask_NH.sum()


def exchange(model: Any, *, needed: bool) -> contextlib.AbstractContextManager[Any]:
    """Set whether the workers exchange gradients in this backward pass; `model` is the result of `Hooks.prepare`."""
    if hasattr(model, "set_requires_gradient_sync"):  # fully_shard
        model.set_requires_gradient_sync(needed)
    elif not needed and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
