"""Makes networks and batches of a training's sizes, without its data and without weights."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PretrainedConfig

from tap_ray.dataset.crops import CROPS
from tap_ray.models.batch import Batch
from tap_ray.models.build import towers_of
from tap_ray.models.fast import FastTokenizer, fit_fast
from tap_ray.models.heads import FlowHead
from tap_ray.models.known_vlms import TASK
from tap_ray.models.language import encode, word_tokenizer
from tap_ray.models.normalizer import Normalizer
from tap_ray.models.policy import PolicyConfig, TapPolicy
from tap_ray.models.prompt import Row, instruction_tokenizer, prompt
from tap_ray.models.vlm import ActionWords, VlmParts, VlmPolicy
from tap_ray.models.vlm_config import without_flash
from tap_ray.models.vlm_files import VlmFiles
from tap_ray.planning.costs import Depths

LAYERS = ("num_hidden_layers", "depth")
"""Names of the number of layers in the configs of text models and vision towers."""


def depths_of(config: PretrainedConfig) -> Depths:
    """The numbers of layers of an image-text model."""
    return Depths(_layers(config.get_text_config()), _layers(config.vision_config))


def whole_policy(policy: PolicyConfig, parts: VlmParts | None) -> nn.Module:
    """The whole network; an image-text model on torch's meta device, where it takes no memory."""
    if parts is None:
        return _policy(policy, parts)
    with torch.device("meta"):
        return _policy(policy, parts)


def empty_policy(policy: PolicyConfig, parts: VlmParts | None, depths: Depths, checkpoints: bool) -> nn.Module:
    """The network with given numbers of layers; its weights are uninitialized memory that was never touched."""
    if parts is None:
        return _policy(policy, parts).train()
    vlm = replace(policy.vlm, checkpoint_activations=policy.vlm.checkpoint_activations and checkpoints)
    files = replace(parts.files, config=shallow(parts.files.config, depths))
    network = whole_policy(replace(policy, vlm=vlm), replace(parts, files=files)).to_empty(device="cpu")
    for buffer in network.buffers():
        buffer.zero_()
    for part in network.modules():
        if isinstance(part, ActionWords):  # its gradient needs no product, and would be a matrix of zeros
            part.base.requires_grad_(False)
        if isinstance(part, Normalizer):
            part.scale.fill_(1.0)
        if isinstance(part, FlowHead):
            part.action_index.copy_(torch.arange(policy.num_actions))
            part.state_index.copy_(torch.arange(policy.num_motion_states))
    return network.train()


def shallow(config: PretrainedConfig, depths: Depths) -> PretrainedConfig:
    """The same model with fewer layers."""
    shallow_config = copy.deepcopy(config)
    for part, num in ((shallow_config.get_text_config(), depths.text), (shallow_config.vision_config, depths.vision)):
        for name in LAYERS:
            if hasattr(part, name):
                setattr(part, name, num)
        if getattr(part, "layer_types", None):
            part.layer_types = (part.layer_types * num)[:num]
    if getattr(shallow_config.vision_config, "deepstack_visual_indexes", None):
        # Qwen3-VL: their projections are one of them here
        shallow_config.vision_config.deepstack_visual_indexes = [0]
    return shallow_config


def planning_tokens(policy: PolicyConfig) -> FastTokenizer:
    """Action tokens of noise, which takes about one token per number: the largest possible number."""
    noise_NHA = np.random.default_rng(0).normal(size=(512, policy.chunk, policy.num_actions)).astype(np.float32)
    return fit_fast(noise_NHA.clip(-3, 3), replace(policy.tokens, pretrained=""))


def batch_of(num: int, *, policy: PolicyConfig, files: VlmFiles | None, goal_rows: bool = False) -> Batch:
    """Black images and actions of noise for every context of a policy.

    Args:
        num: samples (N).
        policy: sizes.
        files: files of its image-text model, if it has one.
        goal_rows: goal images are images of the batch, so none is encoded twice.
    """
    image = partial(torch.zeros, dtype=torch.uint8)
    size, chunk, ones = policy.image_size, policy.chunk, partial(torch.ones, dtype=torch.bool)
    noise = torch.randn(1, chunk, policy.num_actions, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    # Samples with the same actions have the same number of action tokens.
    batch: Batch = {"rgb": image(num, size, size, 3), "action": noise.expand(num, -1, -1)}
    batch |= {"action_mask": ones(num, chunk), "k": torch.full((num,), chunk)}
    if policy.num_cameras > 1:
        batch["extra_rgb"] = image(num, policy.num_cameras - 1, size, size, 3)
    if policy.num_state:
        batch["state"] = torch.zeros(num, policy.num_state)
    if policy.num_motion_states:
        batch["chunk_state"] = torch.zeros(num, chunk, policy.num_motion_states)
    if policy.history:
        batch["past_action"] = torch.zeros(num, policy.history, policy.num_actions)
        batch["past_state"] = torch.zeros(num, policy.history, policy.num_motion_states)
        batch["past_mask"] = ones(num, policy.history)
    if "language" in policy.context:
        tokenizer = instruction_tokenizer(files) if files else word_tokenizer([TASK])
        batch |= {
            "tokens": encode(tokenizer, [_task(tokenizer, policy)], policy.num_context),
            "sentence": torch.zeros(num).long(),
        }
    if "crops" in policy.context:
        crop = image(num, CROPS.size_px, CROPS.size_px, 3)
        batch |= {"object_crop": crop, "place_crop": crop, "crop_mask": ones(num, 2)}
    if "goal" in policy.context:
        batch |= {"goal_row": torch.arange(num)} if goal_rows else {"goal_rgb": batch["rgb"]}
        if policy.num_cameras > 1 and not goal_rows:
            batch["goal_extra_rgb"] = batch["extra_rgb"]
    return batch


def tokens_of(files: VlmFiles, policy: PolicyConfig) -> tuple[int, int]:
    """Tokens of one sample's prompts: those of images, and the others without action tokens."""
    image = np.zeros((policy.image_size, policy.image_size, 3), np.uint8)
    crop = np.zeros((CROPS.size_px, CROPS.size_px, 3), np.uint8)
    rows = {"language": Row([image], TASK), "crops": Row([image, crop, crop]), "goal": Row([image, image])}
    ids = [prompt(files, [rows[name]], query=-1)["input_ids"] for name in policy.context]
    seen = sum(int((one == files.config.image_token_id).sum()) for one in ids)
    return seen, sum(one.numel() for one in ids) - seen


def _policy(policy: PolicyConfig, parts: VlmParts | None) -> VlmPolicy | TapPolicy:
    if parts is not None:
        return VlmPolicy(replace(policy, vlm=without_flash(policy.vlm)), parts, load_weights=False)
    return TapPolicy(policy, towers_of(policy, word_tokenizer([TASK])), load_weights=False)


def _task(tokenizer: Tokenizer, policy: PolicyConfig) -> str:
    """The part of a typical instruction that the policy reads."""
    words = TASK.split()
    starts = (" ".join(words[:num]) for num in range(len(words), 0, -1))
    return next((text for text in starts if len(tokenizer.encode(text).ids) <= policy.num_context), "")


def _layers(config: PretrainedConfig) -> int:
    return next(int(getattr(config, name)) for name in LAYERS if hasattr(config, name))
