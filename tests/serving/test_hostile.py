"""Clients that mean no good beside robots: every robot is answered as if it were alone, and nothing of theirs stays."""

import json
import socket
import threading
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from tap_ray.models.inference import PolicyRunner, load_policy
from tap_ray.serving import connections
from tap_ray.serving.client import RemotePolicy
from tests.serving import hostile
from tests.serving.served import ACTION, RGB, SENTENCE, STATE, Served, serving
from tests.untrained import REMEMBERS, SPEC, untrained_run

STEPS = 40


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyRunner:
    return load_policy(untrained_run(tmp_path_factory.mktemp("runs") / "tap", **REMEMBERS))[0]


def episode(served: Served, seed: int) -> np.ndarray:
    """(T, A) actions of a robot that holds still."""
    robot = RemotePolicy(served.socket, SPEC.to_json())
    robot.reset(seed)
    actions = [robot.act(RGB, STATE, ACTION, SENTENCE) for _ in range(STEPS)]
    robot.socket.close()
    return np.stack(actions)


def until(true) -> None:
    """Wait for something that comes soon; the test's own timeout bounds it."""
    while not true():
        time.sleep(0.01)


@pytest.mark.slow
def test_robots_beside_one_hostile_client_of_every_kind(policy: PolicyRunner):
    with serving(policy, limit=8) as served:
        alone = {seed: episode(served, seed) for seed in (1, 2)}
        until(lambda: len(served.sessions) == 0)
        with hostile.attacked(served.port, 2 * len(hostile.KINDS)) as attacks:
            beside: dict[int, np.ndarray] = {}
            robots = [
                threading.Thread(target=lambda seed=seed: beside.setdefault(seed, episode(served, seed)))
                for seed in alone
            ]
            for robot in robots:
                robot.start()
            for robot in robots:
                robot.join()
            assert served.get("health").json()["ready"] is True
            assert len(served.connections) <= 2 * 8 + connections.SPARE
        assert all(attacks.values())
        for seed, actions in alone.items():
            np.testing.assert_array_equal(beside[seed], actions)
        until(lambda: len(served.sessions) == 0)


def test_a_robot_that_reconnects_leaves_no_session(policy: PolicyRunner):
    with serving(policy, limit=2) as served:
        for _ in range(6):
            hostile.reconnecting_robot(served.port, threading.Event())
        until(lambda: len(served.sessions) == 0)
        robot = RemotePolicy(served.socket, SPEC.to_json())
        for _ in range(6):
            robot.reset(0)
        assert len(served.sessions) == 1
        robot.socket.close()
        until(lambda: len(served.sessions) == 0)


def test_the_session_that_waited_longest_makes_room(policy: PolicyRunner):
    with serving(policy, limit=2) as served:
        first, second = (served.begin().json()["session"] for _ in range(2))
        served.clock.now = 9.0
        assert served.act(first).status_code == 200
        assert served.begin().status_code == 503
        served.clock.now = 11.0
        third = served.begin().json()["session"]
        assert served.act(second).status_code == 404
        assert served.act(first, 1).status_code == 200
        assert served.act(third).status_code == 200


def test_quiet_connections_are_closed(policy: PolicyRunner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tap_ray.serving.tcp_server.SWEEP_S", 0.05)
    with serving(policy) as served:
        robot = RemotePolicy(served.socket, SPEC.to_json())
        robot.reset(0)
        monkeypatch.setattr("tap_ray.serving.connections.QUIET_S", 0.2)  # the robot may take longer to begin
        for kind in (hostile.half_a_head, hostile.half_a_body, hostile.no_bytes, hostile.idle_websocket):
            try:
                kind(served.port, threading.Event())  # returns when it is closed
            except (OSError, WebSocketException):  # a busy machine needs longer for a handshake
                continue
        assert robot.act(RGB, STATE, ACTION, SENTENCE).shape == (7,)  # a session holds its connection
        robot.socket.close()
        until(lambda: len(served.connections) == 0)


def test_too_many_connections_cost_the_oldest_that_holds_no_session(policy: PolicyRunner):
    with serving(policy, limit=1) as served:
        robot = RemotePolicy(served.socket, SPEC.to_json())
        robot.reset(0)
        held = [hostile.tcp(served.port) for _ in range(2 + connections.SPARE)]
        assert held[0].recv(1) == b""  # one too many, with the robot's
        held[1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            held[1].recv(1)
        assert robot.act(RGB, STATE, ACTION, SENTENCE).shape == (7,)
        robot.socket.close()
        for one in held:
            one.close()


def test_bytes_that_cost_too_much_to_read(policy: PolicyRunner):
    with serving(policy) as served:
        for kind in (hostile.pings, hostile.fragments):
            with pytest.raises((OSError, ConnectionClosed)):
                kind(served.port, threading.Event())


def test_brackets(policy: PolicyRunner):
    with serving(policy) as served, connect(served.socket) as open_socket:
        for depth in (500, 900, 990, 19_000):
            open_socket.send("[" * depth + "]" * (depth if depth < 1000 else 0))
            assert json.loads(open_socket.recv())["status"] in (400, 422)
        open_socket.send('{"spec": {}, "seed": ' + "9" * 4000 + "}")
        assert json.loads(open_socket.recv())["status"] == 422
        open_socket.send("[" * 19_000)
        message = json.loads(open_socket.recv())["error"]
        assert message.startswith('Expected JSON {"spec": ..., "seed": 0}; got something else: maximum recursion depth')


def test_a_body_in_pieces(policy: PolicyRunner):
    with serving(policy) as served, hostile.tcp(served.port) as sender:
        sender.sendall(b"POST /act HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += sender.recv(4096)
        assert answer.startswith(b"HTTP/1.1 411 ")
        assert b"Expected a body with Content-Length; got a chunked one. Send it with Content-Length." in answer


def test_a_bucket():
    now = [100.0]
    bucket = connections.Bucket(10.0, 2, clock=lambda: now[0])
    assert [round(bucket.wait_s(), 6) for _ in range(4)] == [0.0, 0.0, 0.1, 0.2]
    now[0] = 100.2
    assert round(bucket.wait_s(), 6) == 0.1
    now[0] = 200.0
    assert [round(bucket.wait_s(), 6) for _ in range(3)] == [0.0, 0.0, 0.1]


def test_port_scanners_do_not_stop_it(policy: PolicyRunner):
    with serving(policy) as served:
        for _ in range(20):
            socket.create_connection(("127.0.0.1", served.port)).close()
        assert served.get("health").status_code == 200
