"""Shards a model among the workers (FSDP2, arXiv 2304.11277): parameters, gradients, AdamW's state and averaged
weights.

A repeated layer is gathered just before it computes and freed after it; the rest of the model is gathered once per
step. Each worker writes its own shards (`shard_files.py`), and any number of workers can resume from them.
"""

from typing import Any, Callable, Iterable, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tap_ray.errors import ConfigError


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard `model` in place among the workers of the process group, and move its shards to `device`. Optimizer and
    averaged weights must be made afterwards.

    Raises:
        ConfigError: the network has no repeated layers, or has weights of several types, which cannot be sharded
            together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = repeated_layers(model)
    if not layers:
        raise ConfigError(
            "--parallel fsdp shards the layers of an image-text model (--policy.vlm.pretrained), which this network "
            "does not have. Omit --parallel."
        )
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1:
        raise ConfigError(
            f"--parallel fsdp needs weights of a single dtype; got {', '.join(sorted(map(str, dtypes)))}. Use "
            "--policy.vlm.dtype float32, or --parallel ddp."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of an image-text model, vision and language; none in a network of our own."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """`map`, or a function like it whose work is shared among processes."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]: ...


def shared_map(function: Callable[[T], R], items: Iterable[T], /) -> list[R]:
    """`map`, of which each worker computes its share; every worker gets all results, in the order of the items.

    All workers call `function` equally often, as a sharded model needs it: where items do not share evenly, some are
    computed twice.
    """
    items = list(items)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    firsts = range(0, len(items), world)
    shares = of_all([function(items[(first + rank) % len(items)]) for first in firsts])
    return [shares[number % world][number // world] for number in range(len(items))]


def of_all(value: Any) -> list[Any]:
    """The values of all workers, in order of rank; of one process its own. Every worker must call this at the same
    time."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def take_first_buffers(model: nn.Module) -> None:
    """Give every worker the first one's buffers, such as BatchNorm's statistics, which follow from its own batches."""
    if dist.is_initialized():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.broadcast(buffer, src=0)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. For a sharded one, every worker must call this at the same time."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """This worker's shard of a sharded tensor, in the same memory; of another tensor all of it."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
