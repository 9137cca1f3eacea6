"""Makes a training's plan: its memory, the FLOPs of a step, and an upper bound of its speed."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from tap_ray.align.transfer import freeze
from tap_ray.media.text_table import columns
from tap_ray.models.batch import MotionBatch
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.precision import has_bf16
from tap_ray.models.vlm import VlmParts
from tap_ray.planning import shapes
from tap_ray.planning.costs import Costs, costs
from tap_ray.settings import WorkersConfig
from tap_ray.training.loop import TrainConfig
from tap_ray.training.sharding import repeated_layers

GB = 1e9
RATE_S = 1.0
"""How long the matmul rate is measured, s."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices that the matmul rate is measured with."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device of one training process."""

    name: str
    memory: float
    """Memory that it may use, bytes."""
    kind: str
    """"cuda" or "cpu"."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The sizes of a training."""

    job: str
    train: TrainConfig
    workers: WorkersConfig
    policy: PolicyConfig | None = None
    """The policy; None for a motion prior."""
    prior: PriorConfig | None = None
    parts: VlmParts | None = None
    """Parts of the image-text model."""
    frozen: tuple[str, ...] = ()
    """Parts of the policy that are frozen, in addition to `policy.vlm.freeze`."""
    goal_rows: bool = False
    """See `shapes.batch_of`."""
    notes: tuple[str, ...] = ()
    """Assumptions that the plan makes."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Memory of a training process that does not depend on the batch; bytes except for the first two fields."""

    parameters: int
    trainable: int
    weights: float
    gradients: float
    optimizer: float
    gathered: float
    """Whole layers that are gathered in addition to a process's own shard (FSDP); an upper estimate."""
    ema: float

    @property
    def parts(self) -> dict[str, float]:
        """Name of each part, as in messages -> bytes."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "gathered layers": self.gathered,
            "EMA": self.ema,
        }

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of one training process."""

    state: State
    activations: float
    """Bytes."""
    step: Costs
    tokens: tuple[int, int] | None
    """Tokens of one sample: those of images, and the others."""

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return self.state.total + self.activations


def state(training: Training) -> State:
    """The memory that does not depend on the batch, counted on the meta device."""
    network = _whole(training)
    parameters = list(network.parameters())
    trained = [each for each in parameters if each.requires_grad]
    workers = training.workers
    sharded = workers.parallel == "fsdp"
    cut = workers.num_workers if sharded else 1
    weights, gradients = (_bytes(some) / cut for some in ([*parameters, *network.buffers()], trained))
    return State(
        parameters=sum(each.numel() for each in parameters),
        trainable=sum(each.numel() for each in trained),
        weights=weights,
        gradients=gradients,
        optimizer=2 * gradients,
        gathered=_gathered(network) if sharded else 0,
        ema=weights if training.train.ema_decay else 0,
    )


def _gathered(network: nn.Module) -> float:
    """Bytes of everything outside the repeated layers, with its gradients, plus two layers and the gradients of one."""
    layers = [_bytes(layer.parameters()) for layer in repeated_layers(network)]
    return 2 * (_bytes(network.parameters()) - sum(layers)) + 3 * max(layers, default=0)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.nbytes for each in tensors)


def plan(training: Training, *, bf16: bool, held: State | None = None) -> Plan:
    """Make the plan; a network of 3B takes a few seconds and little memory. `held` is its state, if known."""
    step, policy, parts = _step(training, bf16=bf16), training.policy, training.parts
    return Plan(
        state=held or state(training),
        activations=step.activations(training.train.batch_size),
        step=step,
        tokens=shapes.tokens_of(parts.files, policy) if parts and policy else None,
    )


def _whole(training: Training) -> nn.Module:
    if training.policy is None:
        with torch.device("meta"):
            return MotionPrior(training.prior or PriorConfig())
    network = shapes.whole_policy(training.policy, training.parts)
    freeze(network, training.frozen)  # type: ignore[arg-type]
    return network


def _step(training: Training, *, bf16: bool) -> Costs:
    policy, parts = training.policy, training.parts
    if policy is None:
        prior = training.prior or PriorConfig()
        return costs(lambda *_: MotionPrior(prior), partial(_motion, prior), None, bf16=bf16)
    files = parts.files if parts else None

    def network(depths: shapes.Depths, checkpoints: bool) -> nn.Module:
        made = shapes.empty_policy(policy, parts, depths, checkpoints)
        freeze(made, training.frozen)  # type: ignore[arg-type]
        return made

    batch = partial(shapes.batch_of, policy=policy, files=files, goal_rows=training.goal_rows)
    full = shapes.depths_of(files.config) if files else None
    return costs(network, batch, full, bf16=bf16, checkpoints=policy.vlm.checkpoint_activations)


def _motion(prior: PriorConfig, num: int) -> MotionBatch:
    steps = torch.ones(num, prior.chunk, dtype=torch.bool)
    return {
        "action": torch.zeros(num, prior.chunk, prior.num_actions),
        "state": torch.zeros(num, prior.chunk, prior.num_states),
        "step_mask": steps,
        "dim_mask": torch.ones(num, prior.num_actions, dtype=torch.bool),
    }


def device_of(workers: WorkersConfig, gpu_gb: float | None) -> Device | None:
    """The device of a training process: the requested GPU, this machine's, or a share of its memory.

    None if it is unknown: for a cluster, on a machine without a GPU.
    """
    if gpu_gb is not None:
        return Device(name=f"a GPU of {gpu_gb:g} GB", memory=gpu_gb * GB, kind="cuda")
    if torch.cuda.is_available() and workers.gpu != "off":
        about = torch.cuda.get_device_properties(0)
        return Device(name=about.name, memory=about.total_memory * min(1.0, workers.gpus), kind="cuda")
    if workers.ray_address or os.environ.get("RAY_ADDRESS") or workers.gpu == "on":
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = f"1/{workers.num_workers} of " if workers.num_workers > 1 else ""
    return Device(
        name=f"{share}this machine's memory, which has no GPU", memory=memory / workers.num_workers, kind="cpu"
    )


def uses_bf16(train: TrainConfig, kind: str) -> bool:
    """Whether matrix products are in bfloat16 there; "auto" counts as yes for a GPU that is not in this machine."""
    if train.bf16 == "auto":
        return has_bf16(torch.device(kind)) if kind == "cpu" or torch.cuda.is_available() else True
    return train.bf16 == "on"


def matmul_rate(kind: str, *, bf16: bool) -> float:
    """FLOP/s of square matrix products on this machine."""
    dtype, side = torch.bfloat16 if bf16 else torch.float32, SIDE[kind]
    one = torch.randn(side, side, device=kind).to(dtype)
    product = one @ one
    num, start = 0, time.perf_counter()
    while time.perf_counter() - start < RATE_S:
        torch.matmul(one, one, out=product)
        num += 1
        if kind == "cuda":
            torch.cuda.synchronize()
    return 2 * side**3 * num / (time.perf_counter() - start)


def text_of(training: Training, planned: Plan, device: Device | None, rate: tuple[str, float]) -> str:
    """The table of --plan.

    Args:
        training: the sizes of the training.
        planned: its plan.
        device: the device on which it would run.
        rate: the name of the device on which the matmul rate was measured, and FLOP/s.
    """
    held, train, workers, (where, flops_a_s) = planned.state, training.train, training.workers.num_workers, rate
    flops = train.windows_per_step * planned.step.flops_a_sample
    steps_a_s = flops_a_s / flops
    rows = [
        ("parameters", f"{held.parameters:,}"),
        ("  trainable", f"{held.trainable:,}"),
        ("weights", _gb(held.weights)),
        ("gradients", _gb(held.gradients)),
        ("optimizer (AdamW)", _gb(held.optimizer)),
        ("averaged weights (EMA)", _gb(held.ema)),
        *([("gathered layers (FSDP)", _gb(held.gathered))] if held.gathered else []),
        ("activations", f"{_gb(planned.activations)}, {planned.step.saved_a_sample / GB:.3f} GB per sample"),
        ("total", f"{_gb(planned.total)} of {_gb(device.memory) + f', {device.name}' if device else 'not known'}"),
    ]
    if planned.tokens:
        rows.append(("tokens per sample", f"{planned.tokens[0]} of images, {planned.tokens[1]} of text"))
    rows += [
        ("FLOPs per step", f"{flops / 1e12:.3f} TFLOP ({planned.step.flops_a_sample / 1e9:.1f} GFLOP per sample)"),
        ("matmul rate", f"{flops_a_s / 1e12:.3f} TFLOP/s, measured on {where}"),
        (
            "steps/s at most",
            f"{steps_a_s:.3g} at that rate: {train.windows_per_step * workers * steps_a_s:.3g} samples/s",
        ),
    ]
    batches = train.gradient_accumulation_steps
    each = f"{batches} batches" if batches > 1 else "a batch"
    head = f"{training.job}: one of {workers} training processes, {each} of {train.batch_size} samples per step"
    return "\n".join([head, *(f"  {line}" for line in columns(rows, left=2)), *training.notes])


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.3f} GB"
