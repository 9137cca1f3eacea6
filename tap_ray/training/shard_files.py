"""Reads and writes the checkpoints of a sharded model: each worker writes its own shards, and any number of workers,
with shards or without, reads them.

    model/00000-of-00008.safetensors    the shards of worker 0, and what is not sharded
    model/00001-of-00008.safetensors    the shards of worker 1 ...

The layout is that of `torch.distributed.checkpoint.HuggingFaceStorageWriter` with `save_distributed`, and torch's own
`HuggingFaceStorageReader` reads it. The writer is not used, because its workers must meet to plan each checkpoint, and
it writes to local folders only.
"""

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Collection, Mapping

import torch
from safetensors import SafetensorError
from torch import Tensor

from tap_ray import storage
from tap_ray.errors import CheckpointError
from tap_ray.models.weights import require_same, write_tensors
from tap_ray.training.sharding import part

WAIT_S = 1800.0
"""How long the first worker waits for the files of the others, s."""
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Shards:
    """What one worker keeps of some tensors."""

    tensors: Mapping[str, Tensor]
    offsets: Mapping[str, list[int]]
    """Name -> position of the shard's first element in the whole tensor, one number for each dimension."""


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether some are shards of the workers' tensors."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(value, DTensor) for value in tensors.values())


def shards_of(tensors: Mapping[str, Tensor], rank: int, *, copied: bool) -> Shards:
    """The shards that this worker keeps; the first one also keeps whole tensors. With `copied` they are copies on the
    CPU."""
    from torch.distributed.tensor import DTensor

    kept, offsets = {}, {}
    for name, value in tensors.items():
        own = part(value.detach())
        if not (isinstance(value, DTensor) or rank == 0) or (value.numel() and not own.numel()):
            continue
        first = 0
        if isinstance(value, DTensor):  # FSDP2 shards the first dimension, into equal parts but the last ones
            first = rank * -(-value.shape[0] // value.device_mesh.size())
        kept[name] = own.to("cpu", copy=True) if copied else own
        offsets[name] = [first, *[0] * (own.ndim - 1)] if own.ndim else []
    return Shards(tensors=kept, offsets=offsets)


def write(folder: Path, shards: Shards, *, rank: int, world: int) -> None:
    """Write this worker's file.

    Raises:
        StorageError: the storage refused.
    """
    places = {name: {"saved_offsets": offset} for name, offset in shards.offsets.items()}
    about = {"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0", "format": "pt"}
    write_tensors(folder / _name(rank, world), shards.tensors, about=about)


def wait_for(folder: Path, world: int) -> None:
    """Wait until every worker has written its file.

    Raises:
        CheckpointError: some are missing after WAIT_S.
    """
    until = time.monotonic() + WAIT_S
    while missing := [file for rank in range(world) if not (file := folder / _name(rank, world)).exists()]:
        if time.monotonic() > until:
            raise CheckpointError(
                f"{missing[0]} was not written within {WAIT_S:g} s. All workers must write to the same storage, and "
                "their machines must still be there."
            )
        time.sleep(POLL_S)


def read(folder: Path, into: Callable[[Collection[str]], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Read tensors in place: of sharded ones this worker's shards, of others all.

    Args:
        folder: as `write` has filled it.
        into: names of the tensors in it -> the tensors to fill; both must have the same names and shapes.

    Raises:
        CheckpointError: files are missing or truncated, or of another model.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with storage.local_copy(folder) as here:
        have = _whole(here, folder)
        tensors = into(have)
        require_same(have, tensors, where=str(folder))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each worker reads by itself
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(here)), no_dist=True)
    return tensors


def _whole(here: Path, folder: Path) -> dict[str, Tensor]:
    """Name -> a tensor without storage, of the whole shape; `here` is the local copy of `folder`."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    have = sorted(file.name for file in here.glob("*.safetensors"))
    world = int(have[0].partition("-of-")[2].removesuffix(".safetensors")) if have else 1
    if wrong := sorted({_name(rank, world) for rank in range(world)}.symmetric_difference(have)):
        what = "is of another number of workers" if wrong[0] in have else "is missing"
        raise CheckpointError(f"{folder / wrong[0]} {what}. Use an earlier checkpoint.")
    try:
        found = HuggingFaceStorageReader(str(here)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder} cannot be read (truncated?): {error}. Use an earlier checkpoint.") from None
    sizes = {name: about.size for name, about in found.items() if isinstance(about, TensorStorageMetadata)}
    return {name: torch.empty(size, device="meta") for name, size in sizes.items()}


def _name(rank: int, world: int) -> str:
    return f"{rank:05d}-of-{world:05d}.safetensors"
