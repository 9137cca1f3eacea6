"""Moves an image-text model's input to the model's device once, with what the model would otherwise read back there.

Reading a number of a GPU waits until it has done all that it was given. Qwen's models read the sizes of their images,
the kinds of tokens in every row, and the lengths of the attention's windows in every vision layer; but they also take
what follows from these numbers as arguments, which are computed here on the CPU. N batch, L tokens, I images.
"""

from typing import Any

import torch
from torch import Tensor

from tap_ray.models.batch import moved
from tap_ray.models.vlm_files import vision_tower

QWEN = ("qwen2_5_vl", "qwen3_vl")
"""Types of models whose vision tower takes these arguments. Others compute by themselves what they need."""
COUNTED = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
"""What the positions of words and patches (M-RoPE) follow from."""


def placed(model: Any, given: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    """The model's arguments.

    Args:
        model: the network without its language head, of class PreTrainedModel.
        given: from `prompt`, on the CPU.
        device: where the network is.
    """
    more: dict[str, Tensor] = {}
    on_cpu: dict[str, Any] = {}
    if hasattr(model, "get_rope_index") and all(name in given for name in COUNTED):
        more["position_ids"], _ = model.get_rope_index(**{name: given[name] for name in COUNTED})
    if model.config.model_type in QWEN:
        tower: Any = vision_tower(model)
        grid_I3 = given["image_grid_thw"]
        ends = _windows(tower, grid_I3)
        more |= {name: ends.pop(name) for name in [*ends] if name.endswith("index")} | _positions(tower, grid_I3)
        if "flash" in str(tower.config._attn_implementation):  # its kernels read the ends on the device
            more |= ends
            on_cpu = {f"image_max{name[8:-1]}": int(value.diff().max()) for name, value in ends.items()}
        else:
            on_cpu = ends
        on_cpu["image_grid_thw"] = grid_I3
    return {name: moved(value, device) for name, value in (given | more).items() if name not in on_cpu} | on_cpu


def _positions(tower: Any, grid_I3: Tensor) -> dict[str, Tensor]:
    """Row and column of each patch, and in a tower with a table of positions their places in it."""
    from transformers import vision_utils as vision

    found = {"image_position_ids": vision.get_vision_position_ids(grid_I3, tower.spatial_merge_size)}
    if hasattr(tower, "num_grid_per_side"):
        found["image_interp_indices"], found["image_interp_weights"] = (
            vision.get_vision_interpolation_indices_and_weights(
                grid_I3,
                tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=tower.spatial_merge_size,
            )
        )
    return found


def _windows(tower: Any, grid_I3: Tensor) -> dict[str, Tensor]:
    """Where the images' sequences end, and in a tower that attends within windows those, and the order of patches."""
    from transformers import vision_utils as vision

    ends = {"image_cu_seqlens": vision.get_vision_cu_seqlens(grid_I3)}
    if hasattr(tower, "window_size"):
        ends["image_window_index"], ends["image_cu_window_seqlens"] = vision.get_vision_window_index(
            grid_I3, tower.spatial_merge_size, tower.window_size, tower.patch_size
        )
    return ends
