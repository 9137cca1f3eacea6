"""Holds complete configs of the training jobs by name (`--preset`), every value with its source.

    tap_nano                 small towers on CPUs, the jobs' defaults
    tap_smolvlm              TAP on SmolVLM2-500M
    tap_qwen2_5_vl_3b        TAP as described in its paper: a query token, a two-layer MLP, squared error
    tap_qwen2_5_vl_3b_fast   TAP as in its released code: FAST action tokens, nothing frozen
    action_prior_2b          a motion prior, and an image-text model of 2B that acts through its decoder

A value that `sources` does not name is the job's default, which its field documents. The motion prior's chunk (15),
encoder (states and actions) and fading terms (5,000 steps) are both the default and the paper's.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tap_ray.command_line import Preset
from tap_ray.dataset.windows import WindowConfig
from tap_ray.models.known_vlms import QWEN2_5_VL_3B, QWEN3_VL_2B, SMOLVLM2_500M
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.pretrain.from_play import ObjectiveConfig
from tap_ray.settings import SCRATCH, AlignJobConfig, PretrainConfig, PriorJobConfig, WorkersConfig
from tap_ray.training.batches import AugmentConfig
from tap_ray.training.loop import TrainConfig

TAP, TAP_CODE = "arXiv 2607.02466", "the code released with arXiv 2607.02466"
PRIORS = "arXiv 2606.26095"
OURS = "ours, not measured at this size"
DEFAULTS = {"": "ours, measured in docs/results/play_pays.md, pointing.md and turning.md"}

TAP_STAGE_1 = ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0)
ONE_STEP = WindowConfig(horizon=1)
TRAINING = {
    "train.steps": f"{TAP}, training details: 100,000 of each stage",
    "train.batch_size": f"{TAP}, training details: 128 in all",
    "train.lr": f"{TAP}, training details",
    "train.bf16": f"{TAP}, training details",
    "train.augment.shift_px": f"{TAP} states no augmentation",
    "train.checkpoint_every": f"{OURS}: a checkpoint is weights and optimizer",
    "train.validate_every": OURS,
    "workers.num_workers": f"{TAP}, training details: 8 GPUs",
}
"""AdamW's running averages, weight decay, warm-up and clipping are the jobs' defaults, which are the paper's too."""
POLICY = {
    "policy.vlm.pretrained": f"{TAP}, architecture",
    "policy.vlm.freeze": f"{TAP}, Stage 1: the vision tower stays",
    "policy.vlm.checkpoint_activations": f"{OURS}: with it GPUs of 80 GB are enough (--plan)",
    "policy.head_width": f"{OURS}: the model's own width",
    "policy.num_context": f"{OURS}: longer instructions are refused",
    "policy.num_state": f"{TAP}: one camera image, no state",
    "policy.n_action_steps": f"{TAP}: one action a step",
    "windows.horizon": f"{TAP}: a_t alone",
}
STAGE_1 = {
    "objective.next_object": f"{TAP}, Stage 1: inverse dynamics alone",
    "objective.inverse_dynamics": f"{TAP}, Stage 1",
}
FAST = {
    "policy.head": f"{TAP_CODE}: FAST tokens (arXiv 2501.09747); it freezes nothing",
}
SMALLER = {
    "policy.vlm.pretrained": "arXiv 2504.05299 (SmolVLM), in place of the paper's model",
    "train.batch_size": f"{TAP}, training details: 128 in all, here on one GPU",
}


def _training(batch_size: int) -> TrainConfig:
    kept = {"checkpoint_every": 5000, "validate_every": 5000}
    still = AugmentConfig(shift_px=0)
    return TrainConfig(steps=100_000, batch_size=batch_size, lr=5e-5, bf16="on", augment=still, **kept)  # type: ignore[arg-type]


def _policy(vlm: VlmConfig, width: int, **more: Any) -> PolicyConfig:
    return PolicyConfig(vlm=vlm, head_width=width, num_context=48, num_state=0, n_action_steps=1, **more)


def tap_nano_pretrain() -> PretrainConfig:
    """The default for CPUs: small towers and the next-object objective."""
    return PretrainConfig()


def tap_nano_align(*, demos: Path, init: str) -> AlignJobConfig:
    """Stage 2 on top of `tap_nano_pretrain`."""
    return AlignJobConfig(demos=demos, init=init)


def tap_nano_prior(*, data: tuple[str, ...]) -> PriorJobConfig:
    """A motion prior for CPUs."""
    return PriorJobConfig(data=data)


def tap_qwen2_5_vl_3b_pretrain() -> PretrainConfig:
    """TAP's Stage 1 with a regression head, 8 GPUs."""
    return PretrainConfig(
        objective=TAP_STAGE_1,
        windows=ONE_STEP,
        policy=_policy(VlmConfig(pretrained=QWEN2_5_VL_3B, freeze="vision", checkpoint_activations=True), 2048),
        train=_training(16),
        workers=WorkersConfig(num_workers=8),
    )


def tap_qwen2_5_vl_3b_align(*, demos: Path, init: str) -> AlignJobConfig:
    """TAP's Stage 2 with a regression head, 8 GPUs: everything is trained."""
    return AlignJobConfig(
        demos=demos,
        init=init,
        windows=ONE_STEP,
        policy=_policy(VlmConfig(pretrained=QWEN2_5_VL_3B, checkpoint_activations=True), 2048),
        train=_training(16),
        workers=WorkersConfig(num_workers=8),
    )


def tap_qwen2_5_vl_3b_fast_pretrain() -> PretrainConfig:
    """TAP's Stage 1 with action tokens, 8 GPUs."""
    usual = tap_qwen2_5_vl_3b_pretrain()
    return replace(
        usual, policy=_policy(VlmConfig(pretrained=QWEN2_5_VL_3B, checkpoint_activations=True), 2048, head="tokens")
    )


def tap_qwen2_5_vl_3b_fast_align(*, demos: Path, init: str) -> AlignJobConfig:
    """TAP's Stage 2 with action tokens, 8 GPUs."""
    usual = tap_qwen2_5_vl_3b_align(demos=demos, init=init)
    return replace(usual, policy=replace(usual.policy, head="tokens"))


def tap_smolvlm_pretrain() -> PretrainConfig:
    """TAP's Stage 1 on SmolVLM2-500M, one GPU."""
    usual = tap_qwen2_5_vl_3b_pretrain()
    policy = _policy(VlmConfig(pretrained=SMOLVLM2_500M, freeze="vision", checkpoint_activations=True), 960)
    return replace(usual, policy=policy, train=_training(128), workers=WorkersConfig())


def tap_smolvlm_align(*, demos: Path, init: str) -> AlignJobConfig:
    """TAP's Stage 2 on SmolVLM2-500M, one GPU."""
    usual = tap_qwen2_5_vl_3b_align(demos=demos, init=init)
    policy = _policy(VlmConfig(pretrained=SMOLVLM2_500M, checkpoint_activations=True), 960)
    return replace(usual, policy=policy, train=_training(128), workers=WorkersConfig())


LARGE_PRIOR = PriorConfig(latent=256, width=512, num_layers=6, num_heads=8)
PRIOR_SIZES = {
    f"prior.{name}": f"{OURS}; not stated in {PRIORS}" for name in ("latent", "width", "num_layers", "num_heads")
}


def action_prior_2b_prior(*, data: tuple[str, ...]) -> PriorJobConfig:
    """The motion prior: states and actions of play, chunks of 15 steps, flow matching."""
    return PriorJobConfig(
        data=data, prior=LARGE_PRIOR, train=TrainConfig(steps=50_000, batch_size=1024, lr=3e-4, bf16="on")
    )


def action_prior_2b_align(*, demos: Path, init: str = SCRATCH) -> AlignJobConfig:
    """An image-text model of 2B that acts through the decoder of the prior that --prior names, 8 GPUs."""
    return AlignJobConfig(
        demos=demos,
        init=init,
        policy=PolicyConfig(
            vlm=VlmConfig(pretrained=QWEN3_VL_2B), head="flow", prior=LARGE_PRIOR, head_width=2048, num_context=48
        ),
        train=_training(16),
        workers=WorkersConfig(num_workers=8),
    )


_PRIOR_2B = {
    **PRIOR_SIZES,
    **dict.fromkeys(("train.steps", "train.batch_size", "train.lr", "train.bf16"), OURS),
}
_ALIGN_2B = {
    **{key: value.replace(TAP, f"as {TAP}") for key, value in TRAINING.items()},
    "init": f"{PRIORS}: the motion prior is the only Stage 1",
    "policy.head": f"{PRIORS}, Stage 2: the prior's decoder is the action head",
    "policy.vlm.pretrained": f"{OURS}: a model of 2B parameters; the paper's own is not known here",
    "policy.head_width": POLICY["policy.head_width"],
    "policy.num_context": POLICY["policy.num_context"],
    **{f"policy.{key}": value for key, value in PRIOR_SIZES.items()},
}
_TEXT_1 = TRAINING | POLICY | STAGE_1
_TEXT_2 = {key: value for key, value in (TRAINING | POLICY).items() if key != "policy.vlm.freeze"}


def _on_one_gpu(sources: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in (sources | SMALLER).items() if key != "workers.num_workers"}


PRETRAIN: dict[str, Preset[PretrainConfig]] = {
    "tap_nano": Preset(make=tap_nano_pretrain, sources=DEFAULTS),
    "tap_smolvlm": Preset(make=tap_smolvlm_pretrain, sources=_on_one_gpu(_TEXT_1)),
    "tap_qwen2_5_vl_3b": Preset(make=tap_qwen2_5_vl_3b_pretrain, sources=_TEXT_1),
    "tap_qwen2_5_vl_3b_fast": Preset(make=tap_qwen2_5_vl_3b_fast_pretrain, sources=_TEXT_2 | STAGE_1 | FAST),
}
"""Presets of jobs.pretrain."""
ALIGN: dict[str, Preset[AlignJobConfig]] = {
    "tap_nano": Preset(make=tap_nano_align, sources=DEFAULTS),
    "tap_smolvlm": Preset(make=tap_smolvlm_align, sources=_on_one_gpu(_TEXT_2)),
    "tap_qwen2_5_vl_3b": Preset(make=tap_qwen2_5_vl_3b_align, sources=_TEXT_2),
    "tap_qwen2_5_vl_3b_fast": Preset(make=tap_qwen2_5_vl_3b_fast_align, sources=_TEXT_2 | FAST),
    "action_prior_2b": Preset(make=action_prior_2b_align, sources=_ALIGN_2B),
}
"""Presets of jobs.align."""
PRIOR: dict[str, Preset[PriorJobConfig]] = {
    "tap_nano": Preset(make=tap_nano_prior, sources=DEFAULTS),
    "action_prior_2b": Preset(make=action_prior_2b_prior, sources=_PRIOR_2B),
}
"""Presets of jobs.pretrain_prior."""
