"""Where a training step of an image-text model would wait for a GPU, found on the CPU: what is computed from weights
and from what was moved to the device is followed, and every place where Python reads a number of it is listed."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.utils import _recursive_to
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tap_ray.models.batch import Batch, Kept
from tap_ray.models.placement import placed
from tap_ray.models.prompt import prompt
from tap_ray.training.batches import AugmentConfig, augment, to_tensors
from tests.models.test_vlm import KINDS, batch_for, made, rows_of
from tests.moving_square import square_window
from tests.tiny_vlm import tiny_vlm

META = torch.device("meta")
"""A device whose numbers cannot be read."""
aten = torch.ops.aten
SIZED_BY_VALUES = (
    aten.nonzero,
    aten.masked_select,
    aten.masked_scatter_backward,
    aten.repeat_interleave,
    aten._unique2,
)
INDEXING = (aten.index, aten.index_put, aten.index_put_)
"""Sized by values with a mask as the index."""


class Device:
    """The tensors that would lie on the GPU: their storages, held so that no other gets the address of one of them."""

    def __init__(self) -> None:
        self.storages: dict[int, Any] = {}
        self.reads: Counter[str] = Counter()

    def add(self, *values: Any) -> None:
        storages = [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]
        self.storages |= {storage._cdata: storage for storage in storages}

    def has(self, *values: Any) -> bool:
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        return any(value.untyped_storage()._cdata in self.storages for value in tensors)

    def read(self) -> None:
        """Count a read for the function that does it."""
        frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        backward = any(frame.name == "backward" for frame in frames)
        outside = [frame.name for frame in frames if "/torch/" not in frame.filename]
        self.reads["backward" if backward else outside[-1]] += 1


class Following(TorchDispatchMode):
    """What is computed from tensors on the device lies there, too."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, found = func.overloadpacket, func(*args, **(kwargs or {}))
        if self.device.has(args, kwargs):
            masks = [
                value for value in tree_leaves(args[1:]) if isinstance(value, Tensor) and value.dtype == torch.bool
            ]
            if packet in (aten._local_scalar_dense, *SIZED_BY_VALUES) or (packet in INDEXING and masks):
                self.device.read()
            self.device.add(found)
        return found


class Listing(TorchFunctionMode):
    """Lists and arrays are made without an operation that `Following` would see."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy) and self.device.has(args[0]):
            self.device.read()
        return func(*args, **(kwargs or {}))


OF_ALL = {"get_placeholder_mask": 1, "torch_compilable_check": 1, "backward": 1}
MASK = {"_ignore_causal_mask_sdpa": 2}
READS = {
    "smolvlm": {**OF_ALL, **MASK, "get_image_features": 3, "_ignore_bidirectional_mask_sdpa": 1},
    "qwen2_5_vl": {**OF_ALL, **MASK},
    "qwen3_vl": {**OF_ALL, **MASK, "_deepstack_process": 2 * 2, "backward": 1 + 2 * 3},
    "paligemma": OF_ALL,
}
"""All are in transformers 5: it counts the images' words twice (and selects them again in the backward pass), asks
whether rows are padded, SmolVLM which images are there, and Qwen3-VL where they are, in each layer that adds them."""


@pytest.mark.parametrize("head", ["regression", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_reads_nothing_back_but_what_the_library_does(kind: str, head: str, tmp_path: Path):
    policy = made(tiny_vlm(kind, tmp_path), head)
    batch, device = batch_for(policy), Device()
    device.add([value for name, value in batch.items() if name not in policy.on_cpu], list(policy.parameters()))
    device.add([value for name, value in policy.named_buffers() if not name.startswith("action_scale.")])
    given = prompt(policy.parts.files, rows_of(batch), query=policy.words.first)
    on_cpu = {name for name, value in placed(policy.model, given, META).items() if value.device != META}

    def arrive(_model: Any, _args: Any, given: dict[str, Any]) -> None:
        device.add({name: value for name, value in given.items() if name not in on_cpu})

    policy.model.register_forward_pre_hook(arrive, with_kwargs=True)
    with Following(device), Listing(device):
        out = policy(batch)
        (out["pred"] if "pred" in out else out["action"].square().mean()).backward()
    assert device.reads == READS[kind]
    assert all(device.has(value.grad) for value in policy.parameters() if value.grad is not None)


@pytest.mark.parametrize("head", ["regression", "tokens"])
def test_what_the_processor_reads_is_on_the_cpu_and_the_rest_is_not(head: str, tmp_path: Path):
    policy = made(tiny_vlm("qwen2_5_vl", tmp_path), head, "goal")
    window = square_window(0, 0, batch=4, chunk=2, goal=True, crops=True)
    batch = to_tensors(window, META, policy.on_cpu)
    changed = augment(batch, AugmentConfig(jitter=0.1), seed=0, step=0, rank=0)
    of_tokens = {"action", "action_mask", "k"} if head == "tokens" else set()
    images = {"rgb", "goal_rgb", "object_crop", "place_crop", "crop_mask", "crop_px", "crop_px_mask", "task_index"}
    assert {name for name, value in batch.items() if value.device != META} == images | of_tokens
    assert {name for name, value in changed.items() if value.device != META} == images | of_tokens | {"jitter"}
    [rows, _] = policy.views(changed)[""]
    assert len(rows) == 4


def test_ddp_and_fsdp_leave_the_batch_where_it_is():
    batch: Batch = {"rgb": torch.zeros(1, 2, 2, 3, dtype=torch.uint8)}
    assert _recursive_to((batch,), META, False)[0][0]["rgb"].device == META, "they move a dict"
    kept = Kept(batch)
    assert _recursive_to((kept,), META, False)[0][0] is kept
