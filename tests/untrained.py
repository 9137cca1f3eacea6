"""A run folder of jobs.align whose policy has fresh weights: saved by the project's own functions, nothing trained."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

import envs
from tap_ray import runs
from tap_ray.dataset.norm_stats import NormStats, SlotNorm
from tap_ray.models.build import Network, PolicyBundle, new_policy, save_bundle
from tap_ray.models.fast import TokensConfig, fit_fast
from tap_ray.models.language import word_tokenizer
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.prompt import instruction_tokenizer
from tap_ray.models.vlm import VlmParts
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import read_files
from tap_ray.types import EnvConfig

SPEC = envs.spec(EnvConfig())
TASK = "put_carrot_on_plate"
TINY: dict[str, Any] = {
    "image_size": 32,
    "map_width": 16,
    "num_keypoints": 8,
    "glimpse_px": 16,
    "head_width": 32,
    "num_state": len(SPEC.state),
}
REMEMBERS: dict[str, Any] = {
    "head": "flow",
    "chunk": 4,
    "history": 3,
    "num_motion_states": len(SPEC.state),
    "prior": PriorConfig(chunk=4, width=32),
}


def unit(slots):
    """Statistics that change nothing."""
    return SlotNorm(names=tuple(s.name for s in slots), offset=(0.0,) * len(slots), scale=(1.0,) * len(slots))


def untrained_run(folder: Path, **policy: Any) -> Path:
    """A finished run for 32 px images of the WidowX; `policy` changes its config."""
    tokenizer = word_tokenizer(envs.TASKS[TASK].sentence)
    return _saved(folder, new_policy(PolicyConfig(**(TINY | policy)), seed=0, tokenizer=tokenizer), tokenizer)


def untrained_vlm_run(folder: Path, source: str, head: str) -> Path:
    """The same with an image-text model as the backbone."""
    sizes = {"image_size": 32, "chunk": 2, "head_width": 32, "num_state": len(SPEC.state), "num_context": 32}
    config = PolicyConfig(head=head, vlm=VlmConfig(pretrained=source), **sizes)  # type: ignore[arg-type]
    files, noise = read_files(source), np.random.default_rng(0).normal(size=(200, 2, 7)).astype(np.float32)
    parts = VlmParts(files=files, actions=fit_fast(noise, TokensConfig()) if head == "tokens" else None)
    tokenizer = instruction_tokenizer(files)
    return _saved(folder, new_policy(config, seed=0, tokenizer=tokenizer, parts=parts), tokenizer)


def _saved(folder: Path, network: Network, tokenizer: Tokenizer) -> Path:
    norm = NormStats(state=unit(SPEC.state), action=unit(SPEC.action))
    if hasattr(network.head, "set_layout"):
        network.head.set_layout(SPEC)
    network.set_norm(norm)
    opened = runs.open_run(folder, job="align", config={"steps": 0})
    save_bundle(folder / "final", PolicyBundle(network=network, spec=SPEC, norm=norm, tokenizer=tokenizer))
    runs.finish(opened)
    return folder
