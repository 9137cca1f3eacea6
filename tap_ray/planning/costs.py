"""Counts FLOPs and saved activations of a training step with torch on the network itself, without computing products.

Each operator runs only for its shapes: products return zeros, so a step of a large network takes only the time of its
other operators. Counted are forward and backward of a few samples of networks of one and two layers; the result is
extrapolated linearly in samples and in layers, which is exact for identical layers.
"""

from dataclasses import dataclass
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from tap_ray.models.batch import Batch, MotionBatch
from tap_ray.models.precision import autocast

ATEN = torch.ops.aten
ATTENTION = ATEN._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = ATEN._scaled_dot_product_flash_attention_for_cpu_backward
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    ATTENTION: lambda query, key, value, *_, out_val, **__: sdpa_flop_count(query.shape, key.shape, value.shape),
    ATTENTION_BACKWARD: lambda grad, query, key, value, *_, out_val, **__: sdpa_backward_flop_count(
        grad.shape, query.shape, key.shape, value.shape
    ),
}
"""FLOP formulas of attention on a CPU: torch has them for GPUs only; these are the same."""
MULTIPLYING = (ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.convolution, ATEN.convolution_backward)
FORMULAS = {packet: flop_registry[packet] for packet in MULTIPLYING} | CPU_ATTENTION
FEW, FEW_FOR_NORM = (1, 2), (2, 4)
"""Batch sizes of the two steps that are extrapolated; BatchNorm needs at least two samples."""


class Depths(NamedTuple):
    """Numbers of layers of an image-text model."""

    text: int
    vision: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """FLOPs and memory of a step, by its number of samples."""

    flops_a_sample: float
    saved: float
    """Bytes kept for the backward pass independent of the batch size, such as weights in bfloat16."""
    saved_a_sample: float
    """Bytes that each sample adds. With activation checkpointing they include those of the largest layer, which exist
    again while it is recomputed."""

    def activations(self, num: int) -> float:
        """Bytes, for `num` samples."""
        return self.saved + num * self.saved_a_sample


class Unmultiplied(TorchDispatchMode):
    """Makes products and attention return zeros, in the backward pass uninitialized memory; their FLOPs are counted by
    torch's own formulas (`FlopCounterMode` also follows the modules, which takes most of its time)."""

    flops = 0
    backward = False
    """Whether results are gradients, whose values do not matter. In the forward pass they may be used as positions in
    images."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in FORMULAS:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs))
        sizes = func(*args, **kwargs)
        self.flops += FORMULAS[func.overloadpacket](*args, **kwargs, out_val=sizes)
        return tree_map_only(Tensor, self._result, sizes)

    def _result(self, like: Tensor) -> Tensor:
        made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
        return made if self.backward else made.zero_()


def step_costs(network: nn.Module, batch: Batch | MotionBatch, *, bf16: bool) -> tuple[float, float]:
    """FLOPs of a forward and a backward pass, and bytes kept between them (parameters and buffers are not)."""
    owned = {value.untyped_storage().data_ptr() for value in [*network.parameters(), *network.buffers()]}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with Unmultiplied() as counter:
        precision = autocast("on" if bf16 else "off", torch.device("cpu"), network)
        with saved_tensors_hooks(keep, lambda value: value), precision:
            loss = _sum(network(batch))
        counter.backward = True
        loss.backward()
    network.zero_grad(set_to_none=True)
    return float(counter.flops), float(sum(kept.values()))


def costs(
    make: Callable[[Depths, bool], nn.Module],
    batch_of: Callable[[int], Batch | MotionBatch],
    full: Depths | None,
    *,
    bf16: bool,
    checkpoints: bool = False,
) -> Costs:
    """The costs of a network.

    Args:
        make: builds the network with given numbers of layers; the second argument turns on the requested activation
            checkpointing.
        batch_of: builds a batch of a given size.
        full: its numbers of layers; None for a network that is not an image-text model and is built in full.
        bf16: whether products are bfloat16.
        checkpoints: whether activations are computed again.
    """

    def line(depths: Depths, checkpointed: bool) -> np.ndarray:
        """(2, 2): FLOPs and bytes, each the constant part and the part per sample."""
        network = make(depths, checkpointed)
        low, high = FEW if full else FEW_FOR_NORM
        few, more = (np.array(step_costs(network, batch_of(num), bf16=bf16)) for num in (low, high))
        each = (more - few) / (high - low)
        return np.stack([few - low * each, each], axis=1)

    one = Depths(1, 1)
    if full is None:
        return _costs(line(one, True))
    base, text, vision = (line(depths, True) for depths in (one, Depths(2, 1), Depths(1, 2)))
    found = base + (full.text - 1) * (text - base) + (full.vision - 1) * (vision - base)
    if checkpoints:
        base, text, vision = (line(depths, False) for depths in (one, Depths(2, 1), Depths(1, 2)))
        found[1] += np.maximum(text - base, vision - base)[1]
    return _costs(found)


def _costs(line: np.ndarray) -> Costs:
    (_, flops), (saved, saved_a_sample) = line
    return Costs(flops_a_sample=float(flops), saved=float(saved), saved_a_sample=float(saved_a_sample))


def _sum(out: Mapping[str, Tensor]) -> Tensor:
    """A scalar that depends on every output; the cost of the loss itself is neglected."""
    floats = [value.float().sum() for value in out.values() if value.requires_grad]
    return torch.stack(floats).sum()
