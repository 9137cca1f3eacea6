"""The class that a Serve replica is made of, without Serve."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tap_ray.models.chunk_buffer import PolicyInput
from tap_ray.models.inference import load_policy
from tap_ray.serving.contract import Contract
from tap_ray.serving.request_error import RequestError
from tap_ray.serving.settings import ServeConfig
from tests.untrained import SPEC, untrained_run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's own, as it is imported
def test_each_robot_gets_its_own_chunk_and_one_that_is_refused_costs_no_other(tmp_path: Path):
    """With --batch-invariant bit by bit as if it were alone, else within 1e-5."""
    from tap_ray.distributed.serve import Network

    run = untrained_run(tmp_path / "tap")
    policy, rng = load_policy(run)[0], np.random.default_rng(0)
    looks = [
        PolicyInput(
            rgb=rng.integers(0, 256, (32, 32, 3), np.uint8),
            state=rng.normal(size=len(SPEC.state)).astype(np.float32),
            instruction="put the carrot on the plate",
            noise=None,
            past=None,
        )
        for _ in range(3)
    ]
    expected = [policy.chunks([look])[0] for look in looks]
    wordy = PolicyInput(rgb=looks[0].rgb, state=looks[0].state, instruction="put " * 99, noise=None, past=None)
    contract = Contract(policy="tap", policy_hash="0", spec=SPEC, image_size=32, chunking=policy.chunking)
    for exact in (True, False):
        network = Network(str(run), contract, ServeConfig(policy=run, batch_invariant=exact))
        got, refused = asyncio.run(ask(network, looks, wordy))
        assert isinstance(refused, RequestError)
        assert refused.status == 422
        for have, want in zip(got, expected, strict=True):
            np.testing.assert_allclose(have, want, rtol=0, atol=0 if exact else 1e-5)
    assert not np.array_equal(expected[0], expected[1])


async def ask(network: Any, looks: list[PolicyInput], wordy: PolicyInput):
    """All at once."""
    *got, refused = await asyncio.gather(*map(network, [*looks, wordy]), return_exceptions=True)
    return got, refused
