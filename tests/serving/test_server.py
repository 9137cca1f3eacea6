"""Routes, refusals and sessions of a served policy, over real HTTP and WebSocket; the network is asked in process."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tap_ray.errors import ConfigError
from tap_ray.models.inference import PolicyRunner, load_policy
from tap_ray.serving import wire
from tap_ray.serving.client import RemotePolicy
from tap_ray.serving.settings import ServeConfig, check, is_loopback, token_of
from tests.serving.served import ACTION, GOOD, RGB, SENTENCE, STATE, TIMEOUT_S, Served, serving
from tests.untrained import REMEMBERS, SPEC, untrained_run


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyRunner:
    """One that remembers three steps and draws noise."""
    return load_policy(untrained_run(tmp_path_factory.mktemp("runs") / "tap", **REMEMBERS))[0]


@pytest.fixture(scope="module")
def served(policy: PolicyRunner) -> Iterator[Served]:
    with serving(policy, limit=1000) as server:
        yield server


def test_the_contract(served: Served):
    contract = requests.get(f"{served.url}/spec", timeout=TIMEOUT_S).json()
    assert contract["rgb"] == {"dtype": "U8", "shape": [32, 32, 3]}
    assert contract["state"] == {"dtype": "F32", "shape": [14]}
    assert contract["action"] == {"dtype": "F32", "shape": [7]}
    assert (contract["history"], contract["n_action_steps"], contract["execute"], contract["version"]) == (3, 2, 2, 1)
    assert contract["spec"] == json.loads(json.dumps(SPEC.to_json()))
    assert requests.get(f"{served.url}/health", timeout=TIMEOUT_S).json()["ready"] is True


def test_messages_survive_the_wire():
    about, arrays = wire.unpack(wire.pack({"session": "a", "step": "3"}, GOOD))
    assert about == {"session": "a", "step": "3"}
    for name, array in GOOD.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_steps_over_http_and_websocket_are_those_in_process(served: Served):
    rng = np.random.default_rng(0)
    local = load_policy_again(served.policy)
    session = served.begin(seed=5).json()["session"]
    robot = RemotePolicy(served.socket, SPEC.to_json())
    robot.reset(5)
    local.reset({}, {}, [5])
    executed = ACTION
    for step in range(7):
        rgb, state = rng.integers(0, 255, (32, 32, 3), np.uint8), rng.standard_normal(14, np.float32)
        obs = {"rgb": rgb[None], "state": state[None]}
        expected = local.act(obs, {"instruction": np.array([SENTENCE]), "action": executed[None]})[0]
        over_http = served.act(session, step, rgb=rgb, state=state, action=executed)
        about, arrays = wire.unpack(over_http.content)
        assert about == {"session": session, "step": str(step)}
        np.testing.assert_array_equal(arrays["action"], expected)
        np.testing.assert_array_equal(robot.act(rgb, state, executed, SENTENCE), expected)
        executed = np.clip(expected, SPEC.action_low_A, SPEC.action_high_A)
    robot.socket.close()


def load_policy_again(policy: PolicyRunner) -> PolicyRunner:
    return PolicyRunner(policy.bundle)


def test_a_repeated_step_moves_nothing_on(served: Served):
    session, other = (served.begin(seed=9).json()["session"] for _ in range(2))
    once = [served.act(session, step).content for step in range(4)]
    twice = [served.act(other, step).content for step in (0, 0, 1, 2, 2, 2, 3)]
    actions = [wire.unpack(body)[1]["action"].tolist() for body in twice]
    assert [actions[i] for i in (0, 2, 3, 6)] == [wire.unpack(body)[1]["action"].tolist() for body in once]
    assert actions[0] == actions[1]
    assert actions[3] == actions[4] == actions[5]


REFUSED = {
    "wrong shape": (
        {"rgb": RGB[:16]},
        422,
        "rgb: expected U8 [32, 32, 3]; got U8 [16, 32, 3]. Resize the camera's image to the size that the policy was "
        "trained on, rows first, channels R G B.",
    ),
    "image size": (
        {"rgb": np.zeros((48, 48, 3), np.uint8)},
        422,
        "rgb: expected U8 [32, 32, 3]; got U8 [48, 48, 3]. Resize the camera's image to the size that the policy was "
        "trained on, rows first, channels R G B.",
    ),
    "dtype": (
        {"rgb": RGB.astype(np.float32)},
        422,
        "rgb: expected U8 [32, 32, 3]; got F32 [32, 32, 3]. Resize the camera's image to the size that the policy was "
        "trained on, rows first, channels R G B.",
    ),
    "float64": (
        {"state": STATE.astype(np.float64)},
        422,
        "state: expected dtype U8 or F32; got F64.",
    ),
    "NaN": (
        {"state": np.where(np.arange(14) == 3, np.nan, STATE).astype(np.float32)},
        422,
        "state: slot 3 is NaN or infinite. Check the robot's sensors.",
    ),
    "no state": (
        {"state": None},
        422,
        'state: expected F32 [14]; got nothing. Send the slots that GET /spec lists under "spec", in that order.',
    ),
    "no action although it remembers": (
        {"action": None, "step": 1},
        422,
        "action: expected F32 [7]; got nothing. This policy has a history: send the previous action as it was executed "
        "(clipped to its range).",
    ),
    "another array": (
        {"depth": RGB},
        422,
        "Unknown array 'depth'. A step has the arrays rgb, state.",
    ),
    "no instruction": (
        {"instruction": " "},
        422,
        'metadata "instruction" is missing or empty: this policy does what a sentence says, e.g. "put the carrot on '
        'the plate". Send it with every step.',
    ),
    "no step number": (
        {"step": "first"},
        422,
        'metadata "step": expected the number of the step, counted from "0"; got \'first\'.',
    ),
    "unknown session": (
        {"session": "nobody"},
        404,
        "Unknown session 'nobody': it was ended, its WebSocket closed, it was idle for more than 60 s (10 s if all "
        "sessions are in use), or the server was restarted. Begin a new session at the start of an episode.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_steps_that_are_refused(served: Served, case: str):
    changes, status, message = REFUSED[case]
    session = served.begin().json()["session"]
    refused = served.act(**({"session": session} | changes))
    assert refused.json() == {"status": status, "error": message}
    assert refused.status_code == status
    assert served.act(session).status_code == 200  # the session stands where it stood


def test_a_step_out_of_turn(served: Served):
    session = served.begin().json()["session"]
    assert served.act(session, 4).json()["error"] == (
        f"Session {session} expects step 0; got step 4. Send every step once and in order (only the last one may be "
        "repeated), or begin a session for a new episode."
    )


def test_bytes_that_are_no_message(served: Served):
    for body in (b"", b"hello", wire.pack({}, GOOD)[:-7]):
        refused = requests.post(f"{served.url}/act", data=body, timeout=TIMEOUT_S)
        assert refused.status_code == 400
        assert refused.json()["error"].startswith(
            f"Expected one safetensors message; got {len(body)} bytes that are not:"
        )
    refused = requests.post(f"{served.url}/sessions", data=b"{", timeout=TIMEOUT_S)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith('Expected JSON {"spec": ..., "seed": 0}; got something else:')


def test_too_large(served: Served):
    message = (
        "Expected at most 19540 bytes (one step of one robot with a 32 x 32 image); got 1000000. Resize the image "
        "first, and send one step in each message."
    )
    for route in ("act", "sessions"):
        refused = requests.post(f"{served.url}/{route}", data=bytes(10**6), timeout=TIMEOUT_S)
        assert (refused.status_code, refused.json()["error"]) == (413, message)
    with connect(served.socket) as socket:
        socket.send(bytes(10**6))
        assert json.loads(socket.recv()) == {"status": 413, "error": message}


def test_another_robots_spec(served: Served):
    refused = served.begin(spec=SPEC.to_json() | {"gripper": "0 open, 1 closed", "control_hz": 10.0})
    assert refused.status_code == 422
    assert refused.json()["error"] == (
        "your robot and policy tap do not match:\n"
        "  control_hz: your robot has 10.0, policy tap has 5.0\n"
        "  gripper: your robot has '0 open, 1 closed', policy tap has '+1 open, -1 closed'\n"
        "Use data and a policy of the same robot and conventions; jobs.import_dataset --like imports recordings with "
        "the conventions of another dataset."
    )
    assert served.begin(spec=None).json()["error"] == (
        'A session begins with {"spec": what your robot emits, "seed": a number}; spec is None. Compare your robot '
        'with GET /spec and send its "spec" back.'
    )
    assert served.begin(spec={"robot": "widowx"}).json()["error"].startswith("Your robot's spec lacks 'action' and")
    for seed in (None, -1, 2**63, True, "0"):
        assert served.begin(seed=seed).json()["error"] == (
            f"seed: expected an integer in 0 .. 2^63 - 1; got {seed!r}. Use another seed for each episode."
        )


def test_sessions_end_are_bounded_and_forgotten_when_idle(policy: PolicyRunner):
    with serving(policy, limit=2) as served:
        first, second = (served.begin().json()["session"] for _ in range(2))
        full = served.begin()
        assert (full.status_code, full.json()["error"]) == (
            503,
            "All 2 sessions are in use, and each had a step within 10 s. End one (DELETE /sessions/ID, or close its "
            "WebSocket), or start the server with a larger --sessions.",
        )
        third = served.begin(previous_session=first).json()["session"]
        assert served.act(first).status_code == 404
        assert requests.delete(f"{served.url}/sessions/{third}", timeout=TIMEOUT_S).status_code == 204
        fourth = served.begin().json()["session"]
        fifth = served.begin(ends=fourth).json()["session"]  # the key's former name
        assert served.act(fourth).status_code == 404
        served.clock.now = 59.0
        assert served.act(second).status_code == 200
        served.clock.now = 61.0
        assert served.act(second, 1).status_code == 200
        assert served.act(fifth).status_code == 404


def test_routes_that_are_not_there(served: Served):
    assert requests.get(f"{served.url}/act", timeout=TIMEOUT_S).json() == {
        "status": 405,
        "error": "There is no route GET /act. The routes are GET /health, GET /spec, POST /sessions, "
        "DELETE /sessions/ID, POST /act, WebSocket /ws.",
    }


def test_a_token_is_wanted_on_every_route_but_health(policy: PolicyRunner):
    with serving(policy, token="the-right-token") as served:
        assert requests.get(f"{served.url}/health", timeout=TIMEOUT_S).status_code == 200
        routes = [("GET", "spec"), ("POST", "sessions"), ("POST", "act"), ("DELETE", "sessions/x")]
        for method, route in routes:
            for headers, came in (({}, "none"), ({"Authorization": "Bearer wrong"}, "another one")):
                refused = requests.request(method, f"{served.url}/{route}", headers=headers, timeout=TIMEOUT_S)
                assert refused.status_code == 401
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                assert refused.json()["error"] == (
                    f'This server needs a token; got {came}. Send the header "Authorization: Bearer TOKEN" with the '
                    "token of the file that jobs.serve named when it started (or of its TAP_RAY_SERVE_TOKEN)."
                )
        right = {"Authorization": "Bearer the-right-token"}
        assert requests.get(f"{served.url}/spec", headers=right, timeout=TIMEOUT_S).status_code == 200
        url = served.socket
        with connect(url) as socket:
            assert json.loads(socket.recv())["status"] == 401
            with pytest.raises(ConnectionClosed, match="1008"):
                socket.recv()
        robot = RemotePolicy(url, SPEC.to_json(), "the-right-token")
        robot.reset(0)
        assert robot.act(RGB, STATE, ACTION, SENTENCE).shape == (7,)
        robot.socket.close()


def test_who_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TAP_RAY_SERVE_TOKEN", raising=False)
    config = ServeConfig(policy=tmp_path)
    assert [is_loopback(host) for host in (config.host, "::1", "localhost", "0.0.0.0", "::", "10.0.0.1")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert token_of(config) is None
    file = tmp_path / "new" / "token"
    for host, required in (("127.0.0.1", True), ("0.0.0.0", False)):
        token, shell = token_of(ServeConfig(policy=tmp_path, host=host, require_token=required, token_file=file)) or (
            "",
            "",
        )
        assert shell == f"$(cat {file})"
        assert token == file.read_text().strip()
        assert len(token) >= 40
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=f"{file} can be read by other users of this machine. Run `chmod 600 {file}`"):
        token_of(ServeConfig(policy=tmp_path, require_token=True, token_file=file))
    monkeypatch.setenv("TAP_RAY_SERVE_TOKEN", "sixteen-or-more-characters")
    assert token_of(config) == ("sixteen-or-more-characters", "$TAP_RAY_SERVE_TOKEN")
    for short in ("", "short", "with a space in between"):
        monkeypatch.setenv("TAP_RAY_SERVE_TOKEN", short)
        with pytest.raises(
            ConfigError, match=rf"TAP_RAY_SERVE_TOKEN has {len(short)} characters; it must have at least 16 printable"
        ):
            token_of(config)


def test_knobs_that_cannot_be(tmp_path: Path):
    for changes, message in (
        ({"sessions": 0}, "--sessions must be at least 1; got 0."),
        ({"batch_wait_ms": -1.0}, "--batch-wait-ms must be at least 0; got -1."),
        ({"port": 70_000}, r"--port must be in 0 \.\. 65535; got 70000."),
    ):
        with pytest.raises(ConfigError, match=message):
            check(ServeConfig(policy=tmp_path, **changes))
