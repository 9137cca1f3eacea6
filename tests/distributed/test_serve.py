"""`python -m jobs.serve` as a user starts it: a real Ray Serve, reachable from other machines, so with a token."""

import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import envs
from tap_ray.models.inference import load_policy
from tap_ray.rollout import rollout
from tap_ray.serving.client import RemotePolicy
from tap_ray.types import EnvConfig
from tests.distributed.serve_job import TIMEOUT_S, Server, started
from tests.tiny_vlm import tiny_vlm
from tests.untrained import REMEMBERS, SPEC, TASK, untrained_run, untrained_vlm_run

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 12
SCENE = EnvConfig(task=TASK, image_size=32, max_steps=STEPS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with started(untrained_run(tmp_path / "tap", **REMEMBERS), tmp_path / "token") as server:
        yield server


class Remote:
    """One robot's `Policy` through the server."""

    def __init__(self, server: Server) -> None:
        self.robot = RemotePolicy(f"ws://127.0.0.1:{server.port}/ws", SPEC.to_json(), server.token)
        self.late: list[str] = []

    def reset(self, obs, info, seeds) -> None:
        self.robot.reset(int(seeds[0]))

    def act(self, obs, info) -> np.ndarray:
        about = (obs["rgb"][0], obs["state"][0], info["action"][0], str(info["instruction"][0]))
        while True:
            try:
                return self.robot.act(*about)[None]
            except TimeoutError as late:  # a robot holds still meanwhile, the simulator does so by itself
                self.late.append(str(late))


def episode(policy, seed: int) -> np.ndarray:
    """(T, A) actions of one robot in the simulator."""
    env = envs.make_vector(SCENE, 1)
    done = rollout(env, policy, env_seeds=[seed], policy_seeds=[seed + 100])
    env.close()
    return done.trajectories[0].action


def test_a_server_from_its_start_to_ctrl_c(server: Server):
    """One test, because a start costs ten seconds."""
    what_it_prints_can_be_tried_and_wants_the_token(server)
    two_robots_at_once_get_the_actions_of_the_policy_in_process(server)
    a_killed_network_is_replaced_and_the_episode_goes_on(server)
    ctrl_c_stops_it_and_all_of_its_processes(server)


def what_it_prints_can_be_tried_and_wants_the_token(server: Server):
    assert server.lines[0] == "starting 1 x tap ...\n"
    assert server.lines[1] == (
        "warning: the token and the images cross the network unencrypted. "
        "Use --tls-cert and --tls-key (docs/serving.md).\n"
    )
    assert server.lines[2] == f"ready: widowx, 32 px, ws://0.0.0.0:{server.port}/ws; try\n"
    file = server.run.parent / "token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    curl = server.lines[3].strip().replace("curl ", "curl -sf ")
    assert f'"Authorization: Bearer $(cat {file})"' in curl
    assert server.token not in "".join(server.lines)
    shown = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    assert '"policy":"tap"' in shown
    assert server.get("health", None).json()["ready"] is True
    assert server.get("spec", None).status_code == 401
    assert server.get("spec", "a-guess-of-some-length").status_code == 401
    assert server.get("spec", server.token).json()["history"] == 3


def two_robots_at_once_get_the_actions_of_the_policy_in_process(server: Server):
    torch.set_num_threads(1)  # as the replica has
    expected = {seed: episode(load_policy(server.run)[0], seed) for seed in (1, 2)}
    got: dict[int, np.ndarray] = {}
    robots = [
        threading.Thread(target=lambda seed=seed: got.setdefault(seed, episode(Remote(server), seed)))
        for seed in expected
    ]
    for robot in robots:
        robot.start()
    for robot in robots:
        robot.join(TIMEOUT_S)
    for seed, actions in expected.items():
        assert actions.shape == (STEPS, 7)
        np.testing.assert_array_equal(got[seed], actions)
    assert not np.array_equal(expected[1], expected[2])


class Deadly(Remote):
    """It kills the network in the middle of the episode."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.server, self.steps = server, 0

    def act(self, obs, info) -> np.ndarray:
        self.steps += 1
        if self.steps == STEPS // 2:
            replica = self.server.replica()
            assert replica is not None
            replica.kill()
        return super().act(obs, info)


def a_killed_network_is_replaced_and_the_episode_goes_on(server: Server):
    before = server.replica()
    got = episode(Deadly(server), 3)
    after = server.replica()
    assert before is not None
    assert after is not None
    assert before.pid != after.pid
    np.testing.assert_array_equal(got, episode(load_policy(server.run)[0], 3))


def ctrl_c_stops_it_and_all_of_its_processes(server: Server):
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGINT)
    output = server.process.communicate(timeout=TIMEOUT_S)[0]
    assert output.endswith(f"stopped\n{server.run}\n")  # before it, Ray's line about the killed network
    assert server.process.returncode == 0
    end = time.monotonic() + TIMEOUT_S
    while [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] and time.monotonic() < end:
        time.sleep(0.1)
    assert not [p.name() for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.long_proof
@pytest.mark.parametrize("head", ["regression", "tokens"])
def test_a_robot_is_answered_by_an_image_text_model(head: str, tmp_path: Path):
    run = untrained_vlm_run(tmp_path / "tap", tiny_vlm("smolvlm", tmp_path / "vlm"), head)
    with started(run, tmp_path / "token") as server:
        torch.set_num_threads(1)  # as the replica has
        np.testing.assert_array_equal(episode(Remote(server), 1), episode(load_policy(server.run)[0], 1))
        robot = RemotePolicy(f"ws://127.0.0.1:{server.port}/ws", SPEC.to_json(), server.token)
        robot.reset(0)
        rgb, state, action = np.zeros((32, 32, 3), np.uint8), np.zeros(len(SPEC.state), np.float32), np.zeros(7)
        with pytest.raises(
            RuntimeError, match=r'"instruction": The instruction .* tokens, but the policy reads at most 32\.'
        ):
            robot.act(rgb, state, action.astype(np.float32), "go " * 60)
