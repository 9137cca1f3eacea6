"""Makes the --plan of each job that trains, and refuses a training that cannot fit before any data or weights are
loaded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

import torch

from tap_ray import storage
from tap_ray.align.demos import context_of, resolve_policy
from tap_ray.dataset.reader import open_dataset
from tap_ray.errors import ConfigError
from tap_ray.models.build import VLM, load_config
from tap_ray.models.fast import load_fast
from tap_ray.models.known_vlms import KNOWN, known_files
from tap_ray.models.other_projects import fitted
from tap_ray.models.policy import PolicyConfig, require_used
from tap_ray.models.prior_files import load_prior
from tap_ray.models.reach import NUM_REACH
from tap_ray.models.vlm import VlmParts
from tap_ray.models.vlm_files import VlmFiles, read_files
from tap_ray.planning import shapes
from tap_ray.planning.plan import Device, Plan, Training, device_of, matmul_rate, plan, state, text_of, uses_bf16
from tap_ray.settings import SCRATCH, AlignJobConfig, PretrainConfig, PriorJobConfig
from tap_ray.stages import align_shapes
from tap_ray.training.stage import FINAL

SHARDS = 8
"""Number of GPUs that is suggested for a model that does not fit on one: those of a typical node."""


@dataclass(frozen=True, kw_only=True)
class Robot:
    """Sizes that are determined by a dataset."""

    image_px: int
    num_actions: int
    num_states: int
    num_arms: int = 1
    num_cameras: int = 1
    note: str = ""


def plan_pretrain(config: PretrainConfig, gpu_gb: float | None) -> str:
    """--plan of jobs.pretrain."""
    return _text(pretraining(config), gpu_gb)


def plan_align(config: AlignJobConfig, gpu_gb: float | None) -> str:
    """--plan of jobs.align."""
    return _text(aligning(config), gpu_gb)


def plan_prior(config: PriorJobConfig, gpu_gb: float | None) -> str:
    """--plan of jobs.pretrain_prior."""
    return _text(Training(job="pretrain_prior", train=config.train, workers=config.workers, prior=config.prior), gpu_gb)


def require_fit(config: PretrainConfig | AlignJobConfig) -> None:
    """Raise a ConfigError if an image-text model's training does not fit where it would run; it says what would fit.

    Our own small towers are not checked, because they fit everywhere, nor is a cluster that cannot be reached from
    here.
    """
    device = device_of(config.workers, None)
    if device is None or not _has_vlm(config):
        return
    training = pretraining(config) if isinstance(config, PretrainConfig) else aligning(config)
    planned = plan(training, bf16=uses_bf16(training.train, device.kind))
    if planned.total > device.memory:
        raise ConfigError(refusal(training, planned, device))


def pretraining(config: PretrainConfig) -> Training:
    """The sizes of a Stage 1 training."""
    windows = config.resolve_windows()
    robot = _robot(next(iter(config.sources()[0]), None), config.policy)
    reach = bool(config.objective.next_object and config.objective.reach)
    policy = _resolved_sizes(
        replace(config.policy, context=config.objective.context, chunk=windows.horizon), robot, reach
    )
    parts = _parts(policy, None)
    return Training(
        job="pretrain",
        train=config.train,
        workers=config.workers,
        policy=policy,
        parts=parts,
        goal_rows=windows.segment > 1,
        notes=_notes(robot, policy),
    )


def aligning(config: AlignJobConfig) -> Training:
    """The sizes of a Stage 2 training, from the Stage 1 run of --init if it exists."""
    run = None if config.prior is None else config.prior / FINAL
    prior = load_prior(run) if run and run.is_dir() else None
    policy, windows = align_shapes(config, prior)
    init = None if config.init == SCRATCH else storage.to_path(config.init) / FINAL
    stage_1 = init if init is not None and init.is_dir() else None
    if stage_1 is not None:
        policy = resolve_policy(load_config(stage_1), policy)
    robot, play = _robot(config.demos, policy), bool(config.play)
    context = context_of(config.align, play=play)
    policy = _resolved_sizes(
        replace(policy, context=context, chunk=windows.horizon), robot, bool(windows.reach_steps) or play
    )
    return Training(
        job="align",
        train=config.train,
        workers=config.workers,
        policy=policy,
        parts=_parts(policy, stage_1),
        frozen=config.align.freeze,
        notes=_notes(robot, policy),
    )


def refusal(training: Training, planned: Plan, device: Device) -> str:
    """The message: why it does not fit, and what would."""
    parts = planned.state.parts | {"activations": planned.activations}
    listed = ", ".join(f"{name} {value / 1e9:.3g}" for name, value in parts.items() if value)
    cures = [f"  {flags}: {total / 1e9:.3g} GB" for flags, total in would_fit(training, planned, device)]
    return "\n".join([
        f"This training needs {planned.total / 1e9:.3g} GB per process, but there are only {device.memory / 1e9:.3g} "
        f"GB ({device.name}). GB of {listed}.",
        "It would fit with" if cures else "No flag makes it fit. Use a smaller model, or a larger GPU.",
        *cures,
    ])  # fmt: skip


def would_fit(training: Training, planned: Plan, device: Device) -> Iterator[tuple[str, float]]:
    """Flags with which it fits, and the bytes that it then needs."""
    room = device.memory - planned.state.total - planned.step.saved
    batch = int(room // planned.step.saved_a_sample) if room > 0 else 0
    if 1 <= batch < training.train.batch_size:
        total = planned.state.total + planned.step.activations(batch)
        steps = -(-training.train.windows_per_step // batch)
        yield f"--batch-size {batch} --gradient-accumulation-steps {steps}", total
    bf16 = uses_bf16(training.train, device.kind)
    for flags, other in _alternatives(training):
        held = state(other)
        if held.total > device.memory:
            continue
        total = plan(other, bf16=bf16, held=held).total
        if total <= device.memory:
            yield flags, total


def _alternatives(training: Training) -> Iterator[tuple[str, Training]]:
    """Each way to reduce memory, and all of them together with a batch size of 1."""
    if training.train.ema_decay:
        yield "--ema-decay 0", replace(training, train=replace(training.train, ema_decay=0.0))
    if training.policy is None or training.parts is None:
        return
    vlm, found = training.policy.vlm, {}
    if not vlm.checkpoint_activations:
        found["--policy.vlm.checkpoint-activations"] = {"checkpoint_activations": True}
    if not vlm.lora_rank:
        lora = {"lora_rank": 16} | ({"freeze": "vision"} if vlm.freeze == "none" else {})
        found["--policy.vlm.lora-rank 16" + " --policy.vlm.freeze vision" * ("freeze" in lora)] = lora
    if vlm.freeze == "none":
        found["--policy.vlm.freeze vision"] = {"freeze": "vision"}
    for flags, values in found.items():
        yield flags, _with(training, **values)
    workers = training.workers
    if workers.parallel == "ddp":
        cut = replace(workers, parallel="fsdp", num_workers=max(workers.num_workers, SHARDS))
        yield f"--num-workers {cut.num_workers} --parallel fsdp", replace(training, workers=cut)
    if len(found) > 1:
        together = dict([*found.items()][:1]) | {flags: found[flags] for flags in found if "lora" in flags}
        every = _with(training, **{name: value for changes in together.values() for name, value in changes.items()})
        yield f"{' '.join(together)} --batch-size 1", replace(every, train=replace(every.train, batch_size=1))


def _with(training: Training, **vlm: Any) -> Training:
    assert training.policy is not None
    policy = replace(training.policy, vlm=replace(training.policy.vlm, **vlm))
    return replace(training, policy=policy)


def _text(training: Training, gpu_gb: float | None) -> str:
    device = device_of(training.workers, gpu_gb)
    kind = device.kind if device else "cuda"
    here = "cuda" if torch.cuda.is_available() and training.workers.gpu != "off" else "cpu"
    planned = plan(training, bf16=uses_bf16(training.train, kind))
    where = torch.cuda.get_device_name() if here == "cuda" else "the CPU of this machine"
    torch.set_num_threads(torch.get_num_threads() if here == "cuda" else training.workers.threads)
    rate = matmul_rate(here, bf16=uses_bf16(training.train, here))
    text = text_of(training, planned, device, (where, rate))
    if device and planned.total > device.memory:
        text += f"\nDOES NOT FIT. {refusal(training, planned, device)}"
    return text


def _has_vlm(config: PretrainConfig | AlignJobConfig) -> bool:
    if config.policy.vlm.pretrained or isinstance(config, PretrainConfig) or config.init == SCRATCH:
        return bool(config.policy.vlm.pretrained)
    return (storage.to_path(config.init) / FINAL / VLM).is_dir()


def _robot(data: Path | None, policy: PolicyConfig) -> Robot:
    if data is None or not (data / "meta").is_dir():
        note = (
            f"There is no dataset yet, so the plan assumes images of {policy.image_size} px, {policy.num_actions} "
            "actions, 8 states."
        )
        return Robot(image_px=policy.image_size, num_actions=policy.num_actions, num_states=8, note=note)
    dataset = open_dataset(data)
    spec = dataset.spec
    return Robot(
        image_px=dataset.header.image_size[0],
        num_actions=len(spec.action),
        num_states=len(spec.state),
        num_arms=len(spec.arms),
        num_cameras=len(spec.cameras),
    )


def _resolved_sizes(policy: PolicyConfig, robot: Robot, reach: bool) -> PolicyConfig:
    made = replace(
        policy,
        image_size=robot.image_px,
        num_cameras=robot.num_cameras,
        num_actions=robot.num_actions,
        num_state=robot.num_states if policy.num_state else 0,
        num_motion_states=robot.num_states if policy.head == "flow" else 0,
        num_reach=NUM_REACH * robot.num_arms if reach else 0,
    )
    require_used(made)
    return made


def _parts(policy: PolicyConfig, stage_1: Path | None) -> VlmParts | None:
    if not policy.vlm.pretrained:
        return None
    if stage_1 is not None:
        with storage.local_copy(stage_1 / VLM) as here:
            files = read_files(str(here))
    else:
        files = fitted(_files(policy.vlm.pretrained), policy.vlm)
    actions = None
    if policy.head == "tokens" and policy.tokens.pretrained:
        sizes = {"horizon": policy.chunk, "num_actions": policy.num_actions}
        actions = load_fast(storage.to_path(policy.tokens.pretrained), **sizes)
    elif policy.head == "tokens":
        actions = shapes.planning_tokens(policy)
    return VlmParts(files=files, actions=actions)


def _files(source: str) -> VlmFiles:
    """A model's files from a local folder, from the known models without the hub, or else from the hub."""
    return known_files(source) if source in KNOWN else read_files(source)


def _notes(robot: Robot, policy: PolicyConfig) -> tuple[str, ...]:
    notes = [robot.note] if robot.note else []
    if policy.head == "tokens" and not policy.tokens.pretrained:
        notes.append("The plan assumes one action token per number; a fitted tokenizer needs fewer.")
    return tuple(notes)
