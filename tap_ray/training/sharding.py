"""A model cut into one part for each worker (FSDP2, arXiv 2304.11277): parameters, gradients, AdamW's and the average.

A repeated layer is put together just before it computes and taken apart behind it; the rest of the model, once a step.
Checkpoints do not know of it (`checkpoint.py`): they hold whole tensors, so any number of workers resumes from them.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tap_ray.errors import ConfigError


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Cut `model` in place among the workers of the process group, and put its parts on `device`. Optimizer and average
    are made afterwards.

    Raises:
        ConfigError: a network without repeated layers, or weights of several types, of which one part cannot be made.
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


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Of one that is cut, every worker must ask at the same time."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, one by one, on the CPU of the first worker, none on the others; as they are where none is cut."""
    from torch.distributed.tensor import DTensor

    if not any(isinstance(value, DTensor) for value in tensors.values()):
        return tensors
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = whole(value.detach())
        if dist.get_rank() == 0:
            found[name] = value.cpu()
    return found
