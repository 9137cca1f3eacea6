"""Play -> Stage 1 -> Stage 2 -> evaluation by the jobs, of the small policy and of a tiny image-text model."""

from pathlib import Path

from jobs import align, collect_demos, collect_play, evaluate, pretrain
from tap_ray.evaluate.settings import EvaluateConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.play.settings import DemosJobConfig, PlayJobConfig
from tap_ray.runs import is_done, read_json
from tap_ray.settings import AlignJobConfig, PretrainConfig, WorkersConfig
from tap_ray.training.loop import TrainConfig
from tests.gpu.measure import INVERSE
from tests.tiny_vlm import tiny_vlm

KINDS = ("small", "image-text")
TASK = ("put_carrot_on_plate",)
CELLS = 4
SHORT = TrainConfig(steps=40, batch_size=16, log_every=10, checkpoint_every=20, validate_every=40)


def collected(folder: Path) -> dict[str, Path]:
    """A little play and a few demonstrations."""
    return {
        "play": collect_play.main(PlayJobConfig(episodes=40, out=folder / "play")),
        "demos": collect_demos.main(DemosJobConfig(episodes=20, tasks=TASK, out=folder / "demos")),
    }


def require_chain(
    kind: str, data: dict[str, Path], folder: Path, *, workers: WorkersConfig, gpus_per_fleet: float
) -> None:
    """Train both stages and evaluate; every run is done and every cell has a result."""
    policy, align_policy = PolicyConfig(), PolicyConfig()
    if kind == "image-text":
        policy = PolicyConfig(vlm=VlmConfig(pretrained=tiny_vlm("qwen2_5_vl", folder / "vlm")))
        align_policy = PolicyConfig(num_context=48)  # the tiny tokenizer knows few words; the model itself is Stage 1's
    first = PretrainConfig(
        data=(str(data["play"]),), objective=INVERSE, policy=policy, train=SHORT, workers=workers,
        out=folder / "stage_1",
    )  # fmt: skip
    stage_1 = pretrain.main(first)
    second = AlignJobConfig(
        demos=data["demos"],
        init=str(stage_1),
        policy=align_policy,
        train=SHORT,
        workers=workers,
        out=folder / "stage_2",
    )
    stage_2 = align.main(second)
    third = EvaluateConfig(
        policy=str(stage_2), tasks=TASK, episodes=CELLS, gpus_per_fleet=gpus_per_fleet, out=folder / "evaluated"
    )
    result = evaluate.main(third)
    assert all(is_done(run) for run in (stage_1, stage_2, result))
    assert read_json(result / "results.json")["tasks"][TASK[0]]["standard"]["n"] == CELLS
