"""Builds the networks and losses of Stage 2 for a dataset of demonstrations, on Stage 1 weights or from scratch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Sequence

from tokenizers import Tokenizer

from tap_ray.align.objective import BehaviorCloning, CloningWeights, OwnLoss
from tap_ray.align.transfer import Transfer, TransferParts, freeze, init_from, learning_rates, load_prior_weights
from tap_ray.dataset.norm_stats import NormStats, norm_stats
from tap_ray.dataset.reader import DatasetInfo, stats_of
from tap_ray.dataset.windows import WindowConfig, split_episodes
from tap_ray.errors import ConfigError, DataError
from tap_ray.models.build import PolicyBundle, load_bundle, new_policy
from tap_ray.models.heads import FlowHead
from tap_ray.models.language import blind_tokenizer, encode, pretrained_tokenizer, word_tokenizer
from tap_ray.models.policy import Context, PolicyConfig
from tap_ray.models.prior_files import TrainedPrior
from tap_ray.models.prompt import instruction_tokenizer, require_read
from tap_ray.models.reach import NUM_REACH, reach_moments
from tap_ray.models.vlm import VlmParts, VlmPolicy
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.specs import require_compatible
from tap_ray.training.stage import FINAL, Stage, held_out_windows, resolve_sizes, scale_windows
from tap_ray.training.vlm_parts import chunks_of, new_parts
from tap_ray.types import PLAY_TASK

SIZES = (
    "camera_towers",
    "context_width",
    "map_width",
    "num_keypoints",
    "glimpse_px",
    "head_width",
    "num_state",
    "tokens",
)
"""Fields of PolicyConfig that both stages share."""
OF_A_STAGE = ("freeze", "lora_rank", "lora_alpha", "dtype", "attention", "checkpoint_activations")
"""Fields of VlmConfig that each stage chooses independently of the other."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """What Stage 2 loads, freezes and weighs, and what it is trained on beside the demonstrations."""

    load: TransferParts = "all"
    """What to load from Stage 1: "all", "all_but_head" or "vision" (the tower alone)."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that are frozen, e.g. "vision"; empty trains everything, as the paper does. Parts of an
    image-text model: --policy.vlm.freeze."""
    pretrained_lr_scale: float = 1.0
    """Factor on the learning rate of the parameters that were loaded from Stage 1."""
    prior_steps: int = 5000
    """Optimizer steps over which the loss terms that preserve the motion prior's geometry decay to 0; only with
    --prior."""
    prior_weights: bool = True
    """If false, initialize the prior's weights randomly but keep its sizes and statistics (ablation): losses of a flow
    can be compared only under the same statistics."""
    weights: CloningWeights = field(default_factory=CloningWeights)
    """Weights of the auxiliary losses; a flow head has none of them."""
    play_batch: int = 64
    """Windows of play that are added to each batch of demonstrations; only with --play."""
    play_episodes: int = 0
    """Number of episodes of --play to use (of a mixture, of each dataset), from the first on; 0: all."""


@dataclass(frozen=True, kw_only=True)
class StartFrom:
    """What Stage 2 starts from; with neither field it starts from scratch."""

    init: Path | None = None
    """Run folder of Stage 1."""
    prior: TrainedPrior | None = None
    """Motion prior whose weights the flow head starts from; without one they are random."""


SCRATCH = StartFrom()


def from_dataset(
    dataset: DatasetInfo,
    windows: WindowConfig,
    *,
    policy: PolicyConfig,
    config: AlignConfig,
    start: StartFrom = SCRATCH,
    play: bool = False,
    seed: int,
) -> tuple[Stage, Transfer | None]:
    """Build Stage 2 before its first optimizer step.

    Args:
        dataset: demonstrations with instructions.
        windows: the ones that `resolve_configs` returns; their horizon is the policy's chunk length.
        policy: sizes of a policy trained from scratch; with `start.init` the Stage 1 policy's sizes are used.
        config: what is loaded from Stage 1, what is frozen, and the weights of the losses.
        start: the run folder and the motion prior to start from.
        play: whether windows of play come with each batch.
        seed: random seed of the new weights.

    Returns:
        The stage, and which tensors were loaded (None when training from scratch).

    Raises:
        CheckpointError: `start.init` is missing, truncated or does not fit.
        SpecError: `start.init` was trained for a robot with other conventions.
        DataError: no instructions, no held-out episodes, no statistics.
    """
    if set(dataset.tasks) <= {PLAY_TASK}:
        raise DataError(f"{dataset.path} contains play, which has no instructions. Use jobs.collect_demos.")
    init, prior = start.init, start.prior
    stage_1 = None if init is None else _stage_1(init, dataset)
    if stage_1 is not None:
        policy = resolve_policy(stage_1.network.config, policy)
    policy = replace(
        resolve_sizes(policy, dataset, windows),
        context=context_of(config, play=play),
        num_actions=len(dataset.spec.action),
        num_motion_states=len(dataset.spec.state) if policy.head == "flow" else 0,
        num_reach=NUM_REACH * len(dataset.spec.arms) if windows.reach_steps or play else 0,
    )
    if policy.n_action_steps > policy.chunk:
        raise ConfigError(
            f"A policy that predicts {policy.chunk} actions cannot execute {policy.n_action_steps} of them: lower "
            "--policy.n-action-steps, or raise --windows.horizon."
        )
    norm = _norm(dataset, windows, policy, stage_1=stage_1, prior=prior)
    parts = _parts(dataset, windows, policy, stage_1=stage_1, norm=norm)
    tokenizer = _tokenizer(policy, dataset.tasks, parts)
    model = new_policy(policy, seed=seed, tokenizer=tokenizer, parts=parts, load_weights=stage_1 is None)
    model.set_norm(norm)
    tokens_UL = encode(tokenizer, dataset.tasks, policy.num_context)
    if parts is not None:
        _require_asked(config.weights)
        require_read(parts.files, dataset.tasks, tokens_UL)
    held_out = held_out_windows(dataset, windows, seed=seed)
    if policy.num_reach:
        with_reach = replace(windows, reach_steps=windows.reach_steps or WindowConfig().reach_steps)
        known_reach = held_out if windows.reach_steps else []
        model.reach_scale.set(*reach_moments(known_reach or scale_windows(dataset, with_reach, seed=seed)))
    transfer = init_from(model, init, config.load, source=stage_1.network) if init and stage_1 else None
    known = prior.network if prior and config.prior_weights else None
    if isinstance(model.head, FlowHead):
        model.head.set_layout(dataset.spec)
    if policy.head != "regression":
        objective = OwnLoss(policy=model, tokens_UL=tokens_UL, decay_steps=config.prior_steps if known else 0)
    else:
        objective = BehaviorCloning(policy=model, tokens_UL=tokens_UL, weights=config.weights)
    if known:
        load_prior_weights(model, known)
    freeze(model, config.freeze)
    stage = Stage(
        model=PolicyBundle(network=model, spec=dataset.spec, norm=norm, tokenizer=tokenizer),
        objective=objective,
        held_out=held_out,
        lr_scale=learning_rates(transfer, config.pretrained_lr_scale) if transfer else {},
    )
    return stage, transfer


def _norm(
    dataset: DatasetInfo,
    windows: WindowConfig,
    policy: PolicyConfig,
    *,
    stage_1: PolicyBundle | None,
    prior: TrainedPrior | None,
) -> NormStats:
    """The statistics to normalize with: those of the motion prior for this robot, if there is a prior. Otherwise those
    of Stage 1, if its head was loaded and cannot be rescaled to others (action tokens, a latent of motion). Otherwise
    those of the demonstrations."""
    norm = prior.norm_of(dataset.spec) if prior else None
    if norm is None and stage_1 is not None and policy.head == stage_1.network.config.head != "regression":
        norm = stage_1.norm
    return norm or norm_stats(stats_of(dataset, split_episodes(dataset, windows)[0]), dataset.spec)


def _parts(
    dataset: DatasetInfo,
    windows: WindowConfig,
    policy: PolicyConfig,
    *,
    stage_1: PolicyBundle | None,
    norm: NormStats,
) -> VlmParts | None:
    """The parts of the VLM, taken from Stage 1 (with its action tokens) if there is one; None without a VLM."""
    if stage_1 is None or not isinstance(stage_1.network, VlmPolicy):
        train = split_episodes(dataset, windows)[0]
        return new_parts(policy, lambda: chunks_of(dataset, train, policy.chunk), norm)
    config = stage_1.network.config
    if policy.head == config.head != "regression" and policy.chunk != config.chunk:
        raise ConfigError(
            f"Stage 1 was trained on chunks of {config.chunk} steps, and its {config.head} head cannot change that; "
            f"got chunks of {policy.chunk}. Use --windows.horizon {config.chunk}."
        )
    return stage_1.network.parts


def _tokenizer(policy: PolicyConfig, sentences: Sequence[str], parts: VlmParts | None) -> Tokenizer:
    if parts is not None:
        return instruction_tokenizer(parts.files)
    match policy.language.kind:
        case "words":
            return word_tokenizer(sentences)
        case "none":
            return blind_tokenizer()
        case "pretrained":
            return pretrained_tokenizer(policy.language.pretrained)


def _require_asked(weights: CloningWeights) -> None:
    for name in ("context", "point"):
        if getattr(weights, name):
            raise ConfigError(
                f"--align.weights.{name} needs key points and context vectors, which a VLM policy does not have. Omit "
                "it."
            )


def _stage_1(init: Path, dataset: DatasetInfo) -> PolicyBundle:
    """The Stage 1 policy of a run, if demonstrations of this dataset can be learned on top of it."""
    bundle = load_bundle(init / FINAL)
    require_compatible(dataset.spec, bundle.spec, have_name=f"dataset {dataset.path}", want_name=f"run {init}")
    size, trained_px = dataset.header.image_size[0], bundle.network.config.image_size
    if size != trained_px:
        raise ConfigError(
            f"{init} was trained on images of {trained_px} px, but those of {dataset.path} have {size} px. Collect "
            f"demonstrations with --image-size {trained_px}, or pretrain on play with {size} px."
        )
    return bundle


def resolve_configs(
    policy: PolicyConfig,
    windows: WindowConfig,
    *,
    config: AlignConfig,
    prior: TrainedPrior | None,
    history: int,
    play: bool = False,
) -> tuple[PolicyConfig, WindowConfig]:
    """Complete the configs of policy and windows with what the loss terms, the motion prior and the flow head need.

    Raises:
        ConfigError: a history is given without a flow head or is longer than the prior reads, or a loss term is chosen
            that a flow head does not have.
    """
    if prior:
        policy = replace(policy, head="flow", prior=prior.network.config)
    policy, windows = replace(policy, history=history), resolve_windows(windows, config.weights)
    if policy.head != "regression" and (play or windows.crops or windows.reach_steps):
        raise ConfigError(
            f"A {policy.head} head is trained on demonstrated actions alone. With --prior or --policy.head "
            f"{policy.head}, omit --play and --align.weights.*."
        )
    if policy.head == "flow":
        windows = replace(windows, horizon=policy.prior.chunk, chunk_states=prior is not None, history=history)
    return policy, windows


def context_of(config: AlignConfig, *, play: bool) -> tuple[Context, ...]:
    """The context of the Stage 2 policy: the instruction, and crops if a loss term or co-training on play uses them."""
    return ("language", "crops") if config.weights.asks_crops or play else ("language",)


def resolve_policy(stage_1: PolicyConfig, requested: PolicyConfig) -> PolicyConfig:
    """The config of a Stage 2 policy on Stage 1 weights: Stage 1's sizes, with the requested context, deployment and
    freezing.

    Raises:
        ConfigError: a requested size differs from that of Stage 1.
    """
    resolved = replace(
        requested,
        vision=replace(stage_1.vision, frozen=requested.vision.frozen),
        vlm=_vlm_of(stage_1, requested),
        **{name: getattr(stage_1, name) for name in SIZES},
    )
    usual, vision = PolicyConfig(), replace(requested.vision, frozen=False)
    wrong = [name for name in SIZES if getattr(requested, name) not in (getattr(usual, name), getattr(stage_1, name))]
    wrong += ["vision"] * (vision not in (usual.vision, replace(stage_1.vision, frozen=False)))
    wrong += ["vlm"] * (
        requested.vlm not in (usual.vlm, _vlm_of(stage_1, requested)) and bool(requested.vlm.pretrained)
    )
    if (
        stage_1.vlm.pretrained
        and requested.head != stage_1.head
        and (requested.head, stage_1.head) != ("flow", "regression")
    ):
        raise ConfigError(
            f"Stage 1's VLM was trained with a {stage_1.head} head. Use --policy.head {stage_1.head} (or a motion "
            "prior, --prior, on a regression head)."
        )
    if wrong:
        flags = ", ".join(f"--policy.{name.replace('_', '-')}" for name in wrong)
        raise ConfigError(
            f"With --init the network has Stage 1's sizes, which differ from the given {flags}. Omit these flags, or "
            "train Stage 1 with them."
        )
    return resolved


def _vlm_of(stage_1: PolicyConfig, requested: PolicyConfig) -> VlmConfig:
    """The VLM of Stage 1, with the fields that each stage chooses for itself as requested."""
    return replace(stage_1.vlm, **{name: getattr(requested.vlm, name) for name in OF_A_STAGE})


def resolve_windows(windows: WindowConfig, weights: CloningWeights) -> WindowConfig:
    """Complete the windows with what the loss terms of Stage 2 need; they have no goal image."""
    reach_steps = windows.reach_steps if weights.reach else 0
    return replace(windows, k_max=0, segment=1, reach_steps=reach_steps, crops=weights.need_crops)
