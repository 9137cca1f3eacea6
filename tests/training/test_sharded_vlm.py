"""FSDP on two processes with an image-text model, for every head and with adapters: as DDP, and saved whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import logging

from tap_ray.models.inference import load_policy
from tap_ray.training import checkpoint, session
from tests.made_data import write_made_dataset
from tests.tiny_vlm import tiny_vlm
from tests.training import sharded_vlm
from tests.training.processes import run_two
from tests.training.sharded import curve
from tests.training.sharded_vlm import CASES, SMALL, STEPS, stage_2

TASKS = ("go left", "go to the right")


COMMON = ("lora",)
"""Cases of `make test`: with frozen weights; the others are long proofs."""
EACH = [pytest.param(case, marks=[] if case in COMMON else pytest.mark.long_proof, id=case) for case in sorted(CASES)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    collected = [item.name for item in request.session.items if item.path == Path(__file__)]
    chosen = [case for case in (*CASES, SMALL) if any(f"[{case}]" in name for name in collected)]
    logging.disable_progress_bar()

    folder = tmp_path_factory.mktemp("sharded_vlm")
    source = tiny_vlm("qwen2_5_vl", folder / "vlm")
    data = write_made_dataset(folder / "demos", num_episodes=12, tasks=TASKS)
    run_two(sharded_vlm.train_each, folder, source, data, chosen)
    return folder


@pytest.mark.parametrize("case", EACH)
def test_cut_it_learns_what_it_learns_whole(case: str, runs: Path):
    for name in ("bc/loss", "bc/grad_norm", "bc/val_loss"):
        cut, whole = (curve(runs / f"{case}-{parallel}", name) for parallel in ("fsdp", "ddp"))
        assert [step for step, _ in cut] == [step for step, _ in whole]
        assert [value for _, value in cut] == pytest.approx([value for _, value in whole], rel=1e-3)
    losses = [value for _, value in curve(runs / f"{case}-fsdp", "bc/loss")]
    assert len(losses) == STEPS
    assert losses[0] != losses[-1]


@pytest.mark.parametrize("case", EACH)
def test_what_it_saves_acts_as_what_was_trained_whole(case: str, runs: Path):
    rgb, state = np.zeros((2, 48, 48, 3), np.uint8), np.zeros((2, 7), np.float32)
    chunks = []
    for parallel in ("fsdp", "ddp"):
        runner, _ = load_policy(runs / f"{case}-{parallel}")
        torch.manual_seed(0)
        chunks.append(runner.chunk(rgb, state, list(TASKS)))
    np.testing.assert_allclose(chunks[0], chunks[1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("case", [*EACH, SMALL])
def test_two_processes_validate_as_one_does(case: str, runs: Path):
    """Bit by bit, of an odd number of batches; of which each process scores its share, unless the model generates."""
    for run in sorted(runs.glob(f"{case}-*")):
        stage = stage_2(case, str(runs / "vlm"), runs / "demos")
        newest = checkpoint.latest(run / session.CHECKPOINTS)
        assert newest is not None
        checkpoint.load_weights(newest, stage.network)
        assert len(stage.held_out) % 2
        one = stage.validate()
        assert one.keys() >= {"bc/val_loss", "bc/r2_mean", "bc/gripper_accuracy"}
        two = session.final_metrics(run)
        assert {name: two[name] for name in one} == one
