"""Play -> Stage 1 -> Stage 2 -> evaluation -> a served action, by the jobs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jobs import align, collect_demos, collect_play, evaluate, pretrain
from tap_ray.evaluate.settings import EvaluateConfig
from tap_ray.evaluate.trained import interface
from tap_ray.models.inference import load_policy
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.play.settings import DemosJobConfig, PlayJobConfig
from tap_ray.pretrain.from_play import ObjectiveConfig
from tap_ray.runs import is_done, read_json
from tap_ray.serving.client import RemotePolicy
from tap_ray.settings import AlignJobConfig, PretrainConfig, WorkersConfig
from tap_ray.training.loop import TrainConfig
from tests.distributed.serve_job import started
from tests.gpu.measure import INVERSE
from tests.tiny_vlm import tiny_vlm

TASK = "put_carrot_on_plate"
CELLS, CELL_STEPS = 2, 20
SHORT = TrainConfig(steps=10, batch_size=16, log_every=5, checkpoint_every=5, validate_every=10)


class Kind(NamedTuple):
    """A policy of the chain."""

    head: str = "regression"
    backbone: str = ""
    """Architecture of the tiny image-text model; without one it is the small policy, trained by its default objective
    and co-trained with play in Stage 2."""
    stage: Mapping[str, Any] = {}
    """How the backbone is trained."""
    train: TrainConfig = SHORT


KINDS = {
    "small": Kind(train=replace(SHORT, ema_decay=0.9, gradient_accumulation_steps=2)),
    "regression": Kind(backbone="qwen2_5_vl", stage={"checkpoint_activations": True}),
    "tokens": Kind("tokens", "smolvlm"),
    "flow": Kind("flow", "paligemma", stage={"head_layers": "all", "pad_tokens": 32}),
    "lora": Kind(backbone="qwen3_vl", stage={"freeze": "vision", "lora_rank": 4}),
}


def collected(folder: Path) -> dict[str, Path]:
    """A little play and a few demonstrations."""
    return {
        "play": collect_play.main(PlayJobConfig(episodes=24, max_steps=30, out=folder / "play")),
        "demos": collect_demos.main(DemosJobConfig(episodes=20, tasks=(TASK,), out=folder / "demos")),
    }


def require_chain(kind: Kind, data: dict[str, Path], folder: Path, *, workers: WorkersConfig, gpus: float) -> None:
    """Train both stages, evaluate and serve; every run is done, every cell has a result, and the server gives the
    action of the policy in this process.

    Args:
        kind: the policy.
        data: from `collected`.
        folder: where the runs are written.
        workers: of both trainings.
        gpus: of the fleet that evaluates, and of the process that serves.
    """
    policy, aligned, objective, play = PolicyConfig(), PolicyConfig(), ObjectiveConfig(), (str(data["play"]),)
    if kind.backbone:
        (folder / "vlm").mkdir()
        tiny = VlmConfig(pretrained=tiny_vlm(kind.backbone, folder / "vlm"), **kind.stage)
        policy, objective = PolicyConfig(head=kind.head, vlm=tiny), INVERSE  # type: ignore[arg-type]
        # The tiny tokenizer knows few words; the model itself is Stage 1's.
        aligned = replace(policy, num_context=48, vlm=VlmConfig(**kind.stage))
    usual: dict[str, Any] = {"train": kind.train, "workers": workers}
    first = PretrainConfig(data=play, objective=objective, policy=policy, out=folder / "stage_1", **usual)
    stage_1 = pretrain.main(first)
    second = AlignJobConfig(demos=data["demos"], init=str(stage_1), policy=aligned, out=folder / "stage_2", **usual)
    stage_2 = align.main(second if kind.backbone else replace(second, play=play))
    cells: dict[str, Any] = {"tasks": (TASK,), "episodes": CELLS, "max_steps": CELL_STEPS}
    result = evaluate.main(EvaluateConfig(policy=str(stage_2), gpus_per_fleet=gpus, out=folder / "evaluated", **cells))
    assert all(is_done(run) for run in (stage_1, stage_2, result))
    assert read_json(result / "results.json")["tasks"][TASK]["standard"]["n"] == CELLS
    require_served(stage_2, folder / "token", gpus=gpus)


def require_served(run: Path, token: Path, *, gpus: float) -> None:
    """Ask a real server for an action."""
    (spec, image_px), instruction = interface(run), "put the carrot on the plate"
    rgb = np.random.default_rng(0).integers(0, 255, (image_px, image_px, 3), np.uint8)
    state, action = np.zeros(len(spec.state), np.float32), np.zeros(len(spec.action), np.float32)
    local = load_policy(run, device="cuda" if gpus else "cpu")[0]
    local.reset({}, {}, [5])
    about = {"instruction": np.array([instruction]), "action": action[None]}
    expected = local.act({"rgb": rgb[None], "state": state[None]}, about)[0]
    with started(run, token, "--gpus-per-replica", str(gpus), "--deadline-s", "60") as server:
        robot = RemotePolicy(f"ws://127.0.0.1:{server.port}/ws", spec.to_json(), server.token)
        robot.reset(5)
        served = robot.act(rgb, state, action, instruction)
        robot.socket.close()
    np.testing.assert_allclose(served, expected, atol=1e-3)
