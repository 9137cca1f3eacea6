"""A policy that several fleets share: real Ray processes, the closed-form robot of line_world.py and a real network."""

import asyncio
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pytest
import ray

import envs
from tap_ray.distributed.evaluate import FleetConfig, evaluate
from tap_ray.distributed.inference import Batcher, policies
from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.evaluate import trained
from tap_ray.evaluate.episodes import EpisodeRunner
from tap_ray.evaluate.failures import failure_inputs_of
from tap_ray.evaluate.protocol import Protocol, cells, policy_seed
from tap_ray.evaluate.settings import InferenceConfig
from tap_ray.models.chunk_buffer import ChunkedPolicy, ChunkingSpec, PolicyInput
from tap_ray.models.inference import load_policy
from tap_ray.types import EnvConfig
from tests import line_world
from tests.distributed.nodes import wait_for
from tests.line_world import line_failure_inputs, line_robots
from tests.untrained import SPEC, TASK, untrained_run

pytestmark = [pytest.mark.cluster, pytest.mark.local_ray]

PROTOCOL = Protocol(tasks=("line", "other"), env_version="1", episodes=6, max_steps=5)
BAD = cells(PROTOCOL)[2]
NOISE = float(np.random.default_rng(policy_seed(PROTOCOL.seed, BAD)).standard_normal((1, 1), np.float32)[0, 0])
"""What the policy is given for the first step of that cell, and for no other."""
SHARED = FleetConfig(fleets=2, robots=4, inference=InferenceConfig(actors=1, batch=6, window_ms=20.0))
CHUNKING = ChunkingSpec(chunk=1, n_action_steps=1, history=0, num_actions=1, num_states=1, noise=True)


@pytest.fixture(scope="module", autouse=True)
def _pickled() -> None:
    ray.cloudpickle.register_pickle_by_value(line_world)  # the workers need not find our tests
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Forward:
    """Moves each robot by 0.25, notes how many inputs each pass has, and does as it is told at the bad cell's start."""

    def __init__(self, folder: Path, how: str) -> None:
        self.chunking, self.folder, self.how = CHUNKING, folder, how

    def chunks(self, inputs: Sequence[PolicyInput]) -> np.ndarray:
        with (self.folder / "passes").open("a") as file:
            file.write(f"{len(inputs)}\n")
        if any(one.noise is not None and one.noise[0, 0] == np.float32(NOISE) for one in inputs):
            self._misbehave()
        return np.full((len(inputs), 1, 1), 0.25, np.float32)

    def _misbehave(self) -> None:
        once = self.folder / "died"
        if self.how == "die" or (self.how == "die once" and not once.exists()):
            once.touch()
            os._exit(1)
        if self.how == "raise":
            raise ValueError("no such action")


def make_policy(scene: EnvConfig | None, num: int, *, folder: Path, how: str = "") -> Any:
    return Forward(folder, how)


def make_robots(scene: EnvConfig, num: int) -> Any:
    assert "torch" not in sys.modules
    return line_robots(num, scene)


def robots_of_two_fleets(scene: EnvConfig, num: int, *, folder: Path) -> Any:
    """They wait for those of the other fleet."""
    (folder / f"fleet-{os.getpid()}").touch()
    wait_for(lambda: len(list(folder.glob("fleet-*"))) == 2)
    return make_robots(scene, num)


def run(folder: Path, how: str = "", config: FleetConfig = SHARED, make_vector: Any = make_robots) -> list[Any]:
    return evaluate(
        PROTOCOL,
        make_vector=make_vector,
        make_policy=partial(make_policy, folder=folder, how=how),
        make_failure_inputs=line_failure_inputs,
        folder=folder,
        config=config,
        progress=False,
    )


def outcomes(results: Sequence[Any]) -> list[tuple[Any, ...]]:
    names = ("cell", "partial_once", "entire_once", "partial_end", "entire_end", "num_steps", "error", "failure")
    return [tuple(getattr(r, name) for name in names) for r in results]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What one process without Ray finds, a cell at a time."""
    policy = Forward(tmp_path_factory.mktemp("alone"), "")
    robots = EpisodeRunner(
        PROTOCOL,
        lambda scene, num: line_robots(num, scene),
        lambda scene, num: ChunkedPolicy(CHUNKING, policy.chunks),
        line_failure_inputs,
    )
    return outcomes([result for cell in cells(PROTOCOL) for result in robots.run([cell]).results])


def passes(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "passes").read_text().split()]


def num_stored(folder: Path) -> int:
    return len((folder / "episodes.jsonl").read_text().splitlines())


def test_fleets_without_torch_share_passes_and_agree_with_one_process(tmp_path: Path, expected: list[Any]):
    """12 cells in chunks of three: the passes of two fleets have six inputs, a single fleet's three."""
    patient = replace(SHARED, inference=InferenceConfig(actors=1, batch=6, window_ms=5e3))
    assert (
        outcomes(run(tmp_path, config=patient, make_vector=partial(robots_of_two_fleets, folder=tmp_path))) == expected
    )
    assert sum(passes(tmp_path)) == 12 * PROTOCOL.max_steps
    assert set(passes(tmp_path)) <= {3, 6}
    assert 6 in passes(tmp_path)


def test_a_lost_process_is_started_again_and_no_cell_is_counted_twice(tmp_path: Path, expected: list[Any]):
    assert outcomes(run(tmp_path, "die once")) == expected
    assert (tmp_path / "died").exists()
    assert num_stored(tmp_path) == 12


@pytest.mark.parametrize(
    ("how", "robots", "message"),
    [
        ("raise", 4, "ValueError: no such action"),
        pytest.param(
            *("die", 1, "RuntimeError: it ended the policy's process 3 times: The actor "),
            marks=pytest.mark.long_proof,
        ),
    ],
)
def test_a_cell_that_the_policy_fails_at_costs_no_other(
    tmp_path: Path, how: str, robots: int, message: str, expected: list[Any]
):
    results = run(tmp_path, how, replace(SHARED, robots=robots))
    for result, there, here in zip(results, outcomes(results), expected, strict=True):
        if result.cell == BAD:
            assert result.error.startswith(message)
            assert result.failure == "crashed"
        else:
            assert there == here
    assert num_stored(tmp_path) == 12


def no_policy(scene: EnvConfig, num: int) -> Any:
    raise CheckpointError("runs/x has no weights: train it again.")


def test_a_policy_that_cannot_be_loaded_ends_the_evaluation():
    with (
        pytest.raises(CheckpointError, match=r"^runs/x has no weights: train it again\.$"),
        policies(no_policy, EnvConfig(), SHARED.inference),
    ):
        pass


@pytest.mark.parametrize(
    ("inference", "gpus", "message"),
    [
        (
            {"actors": 1},
            1.0,
            r"^--gpus-per-fleet 1 has no effect with --inference.actors 1: fleets then hold no policy",
        ),
        (
            {"gpus": 0.5},
            0.0,
            r"^--inference.gpus 0.5 has no effect without --inference.actors. Add --inference.actors N",
        ),
        ({"actors": 2, "gpus": 1.0}, 0.0, "^--inference.gpus 1: 2 processes with that many GPUs cannot be placed"),
        ({"actors": 1, "node_labels": ("gpu",)}, 0.0, "^--inference.node-labels must be KEY=VALUE, e.g. role=play"),
    ],
)
def test_what_is_refused(tmp_path: Path, inference: dict[str, Any], gpus: float, message: str):
    config = FleetConfig(gpus=gpus, inference=InferenceConfig(**inference))
    make = {"make_vector": make_robots, "make_policy": no_policy, "make_failure_inputs": line_failure_inputs}
    with pytest.raises(ConfigError, match=message):
        evaluate(PROTOCOL, **make, folder=tmp_path, config=config, progress=False)  # type: ignore[arg-type]


@pytest.mark.long_proof
def test_a_network_computes_for_robots_of_two_fleets(tmp_path: Path):
    """A fleet in each pass: the very frames of separate copies. Two in one pass: the same actions within 1e-5."""
    run = untrained_run(tmp_path / "tap")
    protocol = Protocol(tasks=(TASK,), env_version="1", episodes=4, image_size=32, max_steps=4)
    for name in ("separate", "shared"):
        (tmp_path / name).mkdir()
    for name, inference in {"separate": InferenceConfig(), "shared": InferenceConfig(actors=1, window_ms=0.0)}.items():
        evaluate(
            protocol,
            make_vector=envs.make_vector,
            make_policy=trained.carried(str(run)),
            make_failure_inputs=lambda scene: failure_inputs_of(SPEC),
            folder=tmp_path / name,
            config=FleetConfig(fleets=2, robots=2, inference=inference),
            progress=False,
        )
    separate, shared = (sorted((tmp_path / name / "clips").iterdir()) for name in ("separate", "shared"))
    assert [file.read_bytes() for file in separate] == [file.read_bytes() for file in shared]
    assert separate

    policy, rng = load_policy(run)[0], np.random.default_rng(0)
    inputs = [
        PolicyInput(
            rgb=rng.integers(0, 256, (32, 32, 3), np.uint8),
            state=rng.normal(size=len(SPEC.state)).astype(np.float32),
            instruction=envs.TASKS[TASK].sentence[0],
            noise=None,
            past=None,
        )
        for _ in range(4)
    ]

    async def both() -> list[np.ndarray]:
        batcher = Batcher(policy.chunks, batch=4, window_s=5.0)
        return [*await asyncio.gather(batcher(inputs[:1]), batcher(inputs[1:]))]

    np.testing.assert_allclose(np.concatenate(asyncio.run(both())), policy.chunks(inputs), atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([policy.chunks([one]) for one in inputs]), policy.chunks(inputs), atol=1e-5
    )


@pytest.mark.parametrize(("together", "sizes"), [(True, [3, 2]), (False, [1, 2, 2])])
def test_requests_that_share_a_pass(together: bool, sizes: list[int]):
    """Of five inputs in three requests, four fit into a pass; none is split."""
    seen: list[int] = []

    def double(inputs: Sequence[Any]) -> np.ndarray:
        seen.append(len(inputs))
        return 2 * np.array(inputs)

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(double, batch=4, window_s=0.02, together=together)
        some: Any = [[1], [2, 3], [4, 5]]
        return await asyncio.gather(*map(batcher, some))

    answers = asyncio.run(ask())
    assert [answer.tolist() for answer in answers] == [[2], [4, 6], [8, 10]]
    assert seen == sizes
