"""What lies on a GPU, where there is none."""

import subprocess
import sys

import pytest
import torch

from tap_ray.models.batch import moved


@pytest.mark.parametrize(
    "cases",
    [
        ["both", "cloning, play"],
        pytest.param(["next object", "inverse dynamics", "cloning", "cloning, crops"], marks=pytest.mark.long_proof),
    ],
)
def test_training_steps_are_on_one_device(cases: list[str]):
    steps = subprocess.run(
        [sys.executable, "-m", "tests.training.fake_gpu", *cases], capture_output=True, text=True, check=False
    )
    assert steps.returncode == 0, steps.stderr
    assert steps.stdout.splitlines() == cases


def test_only_what_is_on_the_cpu_is_pinned():
    with pytest.raises(Exception, match=r"CUDA|meta") as failed:
        moved(torch.empty(2, device="meta"), torch.device("cuda", 0))
    assert "pin" not in str(failed.value)
