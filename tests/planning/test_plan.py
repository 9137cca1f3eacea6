"""Plans against networks that were really built and run: parameters exact, FLOPs and kept activations within 10 %."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers.utils import logging

from tap_ray import presets
from tap_ray.dataset.mixture import alone
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.errors import ConfigError
from tap_ray.models.fast import TokensConfig
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm import VlmParts, VlmPolicy
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import read_files
from tap_ray.planning import costs, jobs, shapes
from tap_ray.planning.plan import Device, Training, device_of, plan, state
from tap_ray.settings import AlignJobConfig, PretrainConfig, WorkersConfig
from tap_ray.stages import AlignInputs, align_stage, pretrain_stage
from tap_ray.training.loop import TrainConfig
from tests.made_data import write_made_dataset
from tests.small import SMALL
from tests.tiny_vlm import ARCHITECTURES, tiny_vlm

TASKS = ("go left",)
DEEP = costs.Depths(4, 3)
WITHIN = 0.1
"""The largest error of a plan that is promised."""


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: tiny_vlm(kind, tmp_path_factory.mktemp(kind)) for kind in ARCHITECTURES}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return open_dataset(write_made_dataset(tmp_path_factory.mktemp("made"), num_episodes=21, tasks=TASKS))


def training(source: str, head: str = "regression", **vlm: Any) -> Training:
    """A tiny image-text model of more layers than a plan looks at."""
    chosen: dict[str, Any] = {"head": head, "context": ("language",), "vlm": VlmConfig(pretrained=source, **vlm)}
    sizes = {"image_size": 48, "chunk": 2, "head_width": 32, "num_state": 7}
    policy = PolicyConfig(**chosen, **sizes, prior=PriorConfig(chunk=2, width=32))
    policy = replace(policy, num_motion_states=7 if head == "flow" else 0)
    read = read_files(source)
    actions = shapes.planning_tokens(policy) if head == "tokens" else None
    parts = VlmParts(files=replace(read, config=shapes.shallow(read.config, DEEP)), actions=actions)
    return Training(job="align", train=TrainConfig(batch_size=6), workers=WorkersConfig(), policy=policy, parts=parts)


def measured(network: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """FLOPs and bytes of a step that is really computed, as torch counts them."""
    owned = {value.data_ptr() for value in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in owned:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    cpu = {
        costs.ATTENTION: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
        costs.ATTENTION_BACKWARD: lambda grad, *sizes, **_: sdpa_backward_flop_count(grad, *sizes[:3]),
    }
    with FlopCounterMode(display=False, custom_mapping=cpu) as counter:
        with saved_tensors_hooks(keep, lambda value: value):
            out = network(batch)
            loss = torch.stack([value.float().sum() for value in out.values() if value.requires_grad]).sum()
        num_bytes = sum(storage.nbytes() for storage in kept.values())
        loss.backward()
    return counter.get_total_flops(), num_bytes


@pytest.mark.parametrize(
    ("kind", "head", "vlm"),
    [
        *((kind, "regression", {}) for kind in ARCHITECTURES),
        ("qwen2_5_vl", "flow", {}),
        ("qwen2_5_vl", "tokens", {}),
        ("smolvlm", "regression", {"freeze": "vision"}),
        ("smolvlm", "regression", {"lora_rank": 2, "freeze": "vision"}),
    ],
)
def test_flops_and_activations_are_those_of_a_real_step(kind: str, head: str, vlm: dict, sources: dict[str, str]):
    job = training(sources[kind], head, **vlm)
    assert job.policy is not None
    assert job.parts is not None
    planned = plan(job, bf16=False)
    network = VlmPolicy(job.policy, job.parts, load_weights=False).train()
    flops, kept = measured(network, shapes.batch_of(6, policy=job.policy, files=job.parts.files))
    assert 6 * planned.step.flops_a_sample == pytest.approx(flops, rel=WITHIN)
    assert planned.activations == pytest.approx(kept, rel=WITHIN)
    assert planned.state.parameters == sum(value.numel() for value in network.parameters())
    assert planned.state.trainable == sum(value.numel() for value in network.parameters() if value.requires_grad)
    assert planned.state.optimizer == 2 * planned.state.gradients == 8 * planned.state.trainable


@pytest.mark.parametrize("num_cameras", [1, 2])
def test_our_own_towers_and_a_motion_prior(num_cameras: int):
    policy = replace(SMALL, context=("crops", "language"), num_state=7, num_cameras=num_cameras)
    planned = plan(Training(job="align", train=TrainConfig(), workers=WorkersConfig(), policy=policy), bf16=False)
    network = shapes.empty_policy(policy, None, costs.Depths(1, 1), True)
    flops, kept = measured(network, shapes.batch_of(64, policy=policy, files=None))
    assert 64 * planned.step.flops_a_sample == pytest.approx(flops, rel=WITHIN)
    assert planned.activations == pytest.approx(kept, rel=WITHIN)
    prior = PriorConfig(width=32)
    motion = plan(Training(job="prior", train=TrainConfig(), workers=WorkersConfig(), prior=prior), bf16=False)
    assert motion.state.parameters == sum(value.numel() for value in MotionPrior(prior).parameters())
    assert motion.tokens is None


def test_a_layer_by_hand():
    """8 rows of 3 numbers through 5 units to 2: 2 x 8 x 3 x 5 FLOPs and twice that for weights alone (the input needs
    no gradient), then 2 x 8 x 5 x 2 three times; kept are the input and what ReLU gave, of 4 bytes a number."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"action": self.layers(batch["x"])}

    flops, kept = costs.step_costs(Two(), {"x": torch.zeros(8, 3)}, bf16=False)
    assert flops == 2 * (2 * 8 * 3 * 5) + 3 * (2 * 8 * 5 * 2)
    assert kept == 4 * (8 * 3 + 8 * 5)


def test_recomputed_activations_take_less_and_more_flops(sources: dict[str, str]):
    usual, again = (
        plan(training(sources["qwen3_vl"], **vlm), bf16=False) for vlm in ({}, {"checkpoint_activations": True})
    )
    assert again.activations < 0.7 * usual.activations
    assert 1.1 < again.step.flops_a_sample / usual.step.flops_a_sample < 4 / 3


@pytest.mark.parametrize("head", ["regression", "flow", "tokens"])
def test_a_plan_has_as_many_parameters_as_the_stage(head: str, dataset: DatasetInfo, sources: dict[str, str]):
    vlm = VlmConfig(pretrained=sources["smolvlm"])
    tokens = TokensConfig(vocabulary=256 if head == "tokens" else TokensConfig().vocabulary)
    policy = PolicyConfig(head=head, vlm=vlm, head_width=32, tokens=tokens)  # type: ignore[arg-type]
    both: list[tuple[Training, Any]] = []
    first = PretrainConfig(
        data=(str(dataset.path),),
        policy=policy,
        objective=replace(PretrainConfig().objective, next_object=0, inverse_dynamics=1),
    )
    both.append((jobs.pretraining(first), pretrain_stage(first, alone(dataset))))
    second = AlignJobConfig(demos=dataset.path, init="scratch", policy=policy)
    both.append((jobs.aligning(second), align_stage(second, AlignInputs(demos=dataset))))
    for planned, stage in both:
        built = stage.network
        more = 0  # tokens fitted on the data's few chunks are fewer than planned ones
        if head == "tokens":
            width = built.parts.files.config.get_text_config().hidden_size
            more = 2 * width * (planned.parts.actions.num_tokens - built.parts.actions.num_tokens)
        assert state(planned).parameters == sum(value.numel() for value in built.parameters()) + more
        assert planned.policy.context == built.config.context


def test_the_3b_preset_by_hand():
    """The published model, one word of 2048 numbers, two hidden layers of 2048 units and 7 actions of one step."""
    config = presets.tap_qwen2_5_vl_3b_align(demos=Path("x"), init="y")
    held = state(jobs.aligning(config))
    assert held.parameters == held.trainable == 3_754_622_976 + 2048 + 2 * (2048 * 2048 + 2048) + 2048 * 7 + 7
    assert held.total == held.weights + (4 + 8) * held.trainable  # float32; DDP's buckets are the gradients


def test_a_model_cut_among_workers_by_hand(sources: dict[str, str]):
    job = training(sources["smolvlm"])
    whole = state(job)
    cut = state(replace(job, workers=WorkersConfig(num_workers=8, parallel="fsdp")))
    assert cut.parameters == whole.parameters
    assert (cut.weights, cut.gradients, cut.optimizer) == (whole.weights / 8, whole.gradients / 8, whole.optimizer / 8)
    assert job.policy is not None
    assert job.parts is not None
    sizes: dict[str, int] = {}  # of each layer, by "...layers.<number>", and of all others together
    for name, value in VlmPolicy(job.policy, job.parts, load_weights=False).named_parameters():
        layer = re.match(r".*\.layers\.\d+\.", name)
        sizes[layer[0] if layer else ""] = sizes.get(layer[0] if layer else "", 0) + value.nbytes
    assert cut.gathered == 2 * sizes.pop("") + 3 * max(sizes.values())
    assert whole.gathered == 0


def small_gpu(gigabytes: float) -> Device:
    return Device(name="a small GPU", memory=gigabytes * 1e9, kind="cuda")


def test_what_cannot_fit_is_refused_with_what_would(sources: dict[str, str]):
    job = replace(training(sources["smolvlm"]), train=TrainConfig(batch_size=64, ema_decay=0.9, bf16="off"))
    planned = plan(job, bf16=False)
    memory = planned.state.total + planned.step.activations(40)
    refusal = jobs.refusal(job, planned, small_gpu(memory / 1e9))
    assert refusal.startswith(f"This training needs {planned.total / 1e9:.3g} GB per process, but there are only ")
    assert "(a small GPU). GB of weights " in refusal
    cures = {line.rpartition(": ")[0]: float(line.split()[-2]) for line in refusal.splitlines()[2:]}
    assert "  --batch-size 40 --gradient-accumulation-steps 2" in cures
    assert "  --policy.vlm.checkpoint-activations" in cures
    assert all(gigabytes <= 1.01 * memory / 1e9 for gigabytes in cures.values())
    nothing = jobs.refusal(job, planned, small_gpu(1e-6))  # not even the weights
    assert nothing.endswith("No flag makes it fit. Use a smaller model, or a larger GPU.")


def test_a_job_is_refused_before_it_reads_anything(sources: dict[str, str]):
    policy = PolicyConfig(vlm=VlmConfig(pretrained=sources["smolvlm"]))
    crowd = WorkersConfig(num_workers=100_000, gpu="off")  # each has a little of this machine's memory
    config = AlignJobConfig(demos=Path("nowhere"), init="scratch", policy=policy, workers=crowd)
    with pytest.raises(ConfigError, match=r"GB \(1/100000 of this machine's memory, which has no GPU\)"):
        jobs.require_fit(config)
    jobs.require_fit(replace(config, workers=WorkersConfig(gpu="off")))
    assert device_of(replace(crowd, ray_address="auto"), None) is None
    jobs.require_fit(replace(config, workers=replace(crowd, ray_address="auto")))


def test_the_table_of_a_plan(sources: dict[str, str]):
    policy = PolicyConfig(vlm=VlmConfig(pretrained=sources["qwen2_5_vl"]))
    config = AlignJobConfig(demos=Path("nowhere"), init="scratch", policy=policy)
    text = jobs.plan_align(config, 80.0)
    assert text.startswith("align: one of 1 training processes, a batch of 64 samples per step\n  parameters ")
    assert "of 80.000 GB, a GPU of 80 GB\n" in text
    for row in (
        "trainable",
        "weights",
        "gradients",
        "optimizer (AdamW)",
        "tokens per sample",
        "FLOPs per step",
        "matmul rate",
        "steps/s at most",
    ):
        assert f"  {row}" in text
    assert text.endswith("There is no dataset yet, so the plan assumes images of 96 px, 7 actions, 8 states.")
    assert "DOES NOT FIT. This training needs " in jobs.plan_align(config, 1e-6)
