"""Who may come in: Host, Origin, TLS; and what a server says of its network."""

import json
import ssl
import subprocess
import time
from pathlib import Path

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from tap_ray.errors import ConfigError
from tap_ray.models.inference import PolicyRunner, load_policy
from tap_ray.serving import health
from tap_ray.serving.app import error_json
from tap_ray.serving.client import RemotePolicy
from tap_ray.serving.contract import Contract
from tap_ray.serving.request_error import RequestError
from tap_ray.serving.sessions import Sessions
from tap_ray.serving.settings import ServeConfig, check, curl_flags, listening, names_of, tls_of, url
from tests.serving.served import ACTION, RGB, SENTENCE, STATE, TIMEOUT_S, Served, serving
from tests.untrained import SPEC, untrained_run

EVIL = {
    "host": (
        {"Host": "evil.example:8000"},
        "This server does not accept the host name 'evil.example:8000' (header Host). Use its address, or start "
        "jobs.serve with --hosts NAME for each of its names.",
    ),
    "origin": (
        {"Origin": "http://evil.example"},
        "This server does not accept requests from web pages of 'http://evil.example' (header Origin). Robots send no "
        "Origin; if the page is yours, start jobs.serve with --hosts NAME, the host name of the page.",
    ),
    "file": (
        {"Origin": "null"},
        "This server does not accept requests from web pages of 'null' (header Origin). Robots send no Origin; if the "
        "page is yours, start jobs.serve with --hosts NAME, the host name of the page.",
    ),
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyRunner:
    return load_policy(untrained_run(tmp_path_factory.mktemp("runs") / "tap"))[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key, by the command of docs/serving.md."""
    folder = tmp_path_factory.mktemp("tls")
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    command = next(line for line in page.splitlines() if line.startswith("openssl req"))
    subprocess.run(command.replace("ROBOTS", "localhost").split(), cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize("case", EVIL)
def test_web_pages_of_others(policy: PolicyRunner, case: str):
    headers, message = EVIL[case]
    with serving(policy) as served:
        for route in ("health", "spec"):
            refused = requests.get(f"{served.url}/{route}", headers=headers, timeout=TIMEOUT_S)
            assert (refused.status_code, refused.json()["error"]) == (403, message)
        body = {"spec": SPEC.to_json(), "seed": 1}
        assert requests.post(f"{served.url}/sessions", json=body, headers=headers, timeout=TIMEOUT_S).status_code == 403
        if "Origin" in headers:
            with connect(served.socket, additional_headers=headers, proxy=None) as open_socket:
                assert json.loads(open_socket.recv()) == {"status": 403, "error": message}
        assert len(served.sessions) == 0


def test_names_that_are_its_own(policy: PolicyRunner):
    with serving(policy, names=frozenset({"localhost", "robots.example"})) as served:
        for headers in ({"Host": "localhost:1"}, {"Host": "ROBOTS.example."}, {"Origin": "https://robots.example"}, {}):
            assert requests.get(f"{served.url}/spec", headers=headers, timeout=TIMEOUT_S).status_code == 200
    config = ServeConfig(policy=Path("x"), hosts=("Robots.example",))
    assert names_of(config) == {"localhost", "127.0.0.1", "::1", "robots.example"}
    assert names_of(ServeConfig(policy=Path("x"), host="0.0.0.0")) is None


def test_tls(policy: PolicyRunner, pair: tuple[Path, Path]):
    cert, key = pair
    config = ServeConfig(policy=Path("x"), tls_cert=cert, tls_key=key)
    assert url(config, 8000, "ws") == "wss://127.0.0.1:8000"
    with serving(policy, tls=tls_of(config)) as served:
        local = f"https://localhost:{served.port}"
        assert requests.get(f"{local}/health", verify=str(cert), timeout=TIMEOUT_S).json()["ready"] is True
        robot = RemotePolicy(
            f"wss://localhost:{served.port}/ws", SPEC.to_json(), tls=ssl.create_default_context(cafile=cert)
        )
        robot.reset(0)
        assert robot.act(RGB, STATE, ACTION, SENTENCE).shape == (7,)
        robot.socket.close()
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://localhost:{served.port}/health", timeout=TIMEOUT_S)


def test_tls_files_that_do_not_fit(pair: tuple[Path, Path], tmp_path: Path):
    cert, key = pair
    for changes, message in (
        (
            {"tls_cert": cert},
            "--tls-cert and --tls-key must be given together: the certificate and its private key.",
        ),
        (
            {"tls_cert": cert, "tls_key": tmp_path / "no"},
            f"Cannot read {tmp_path / 'no'}. Name PEM files with --tls-cert",
        ),
        (
            {"tls_cert": key, "tls_key": cert},
            f"{key} and {cert} are not a certificate in PEM and its key without a password. docs",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            tls_of(ServeConfig(policy=Path("x"), **changes))
        assert str(error.value).startswith(message)


def test_health_follows_the_network(policy: PolicyRunner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "HEARTBEAT_S", 0.05)
    with serving(policy) as served:
        until_health(served, 200)
        session = served.begin().json()["session"]
        served.dead.set()
        late = served.act(session)
        assert (late.status_code, late.json()["error"]) == (504, "The network did not answer within 0.4 s.")
        assert until_health(served, 503) == {
            "ready": False,
            "sessions": 1,
            "why": "The network did not answer within 0.4 s.",
        }
        served.dead.clear()
        assert until_health(served, 200) == {"ready": True, "sessions": 1}
        assert served.act(session).status_code == 200  # the same step, with what the robot sees now


def until_health(served: Served, status: int):
    while (answer := served.get("health")).status_code != status:
        time.sleep(0.05)
    return answer.json()


def test_a_late_step_is_a_timeout_for_the_client(policy: PolicyRunner):
    with serving(policy) as served:
        robot = RemotePolicy(served.socket, SPEC.to_json())
        robot.reset(0)
        served.dead.set()
        with pytest.raises(TimeoutError, match="did not answer within"):
            robot.act(RGB, STATE, ACTION, SENTENCE)
        served.dead.clear()
        assert robot.act(RGB, STATE, ACTION, SENTENCE).shape == (7,)
        robot.socket.close()


def test_a_proxy_in_the_environment_is_not_asked(policy: PolicyRunner, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(policy) as served:
        robot = RemotePolicy(served.socket, SPEC.to_json())
        robot.reset(0)
        robot.socket.close()
    assert curl_flags(ServeConfig(policy=Path("x")), None) == "--noproxy '*' "


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "\ud800", "é" * 9])
JSON = LEAF | st.lists(LEAF, max_size=2) | st.dictionaries(st.sampled_from(["name", "\ud800"]), LEAF, max_size=2)


@given(
    spec=JSON, seed=JSON, previous=JSON, slot=st.dictionaries(st.sampled_from(["name", "unit", "low", "high"]), JSON)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_json_is_a_mistake_of_the_servers(policy: PolicyRunner, spec, seed, previous, slot):
    contract = Contract(policy="tap", policy_hash="0", spec=SPEC, image_size=32, chunking=policy.chunking)
    sessions = Sessions(contract, None, limit=1, idle_s=60.0)  # pyright: ignore[reportArgumentType]
    for request in (
        {"spec": spec, "seed": seed, "previous_session": previous},
        {"spec": SPEC.to_json() | {"action": [slot]}, "seed": 1},
    ):
        with pytest.raises(RequestError) as refused:
            sessions.begin(json.loads(json.dumps(request)))
        assert refused.value.status == 422
        json.dumps(error_json(refused.value), ensure_ascii=False).encode()


def test_a_port_is_held_from_the_start():
    with listening("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        bound.listen()
        with pytest.raises(ConfigError, match=rf"Cannot listen on 127.0.0.1:{port}: Address already in use"):
            listening("127.0.0.1", port)


def test_more_sessions_than_files():
    with pytest.raises(
        ConfigError, match=r"--sessions 1000000 needs 2000320 open files, but this shell allows \d+\. Run `ulimit"
    ):
        check(ServeConfig(policy=Path("x"), sessions=1_000_000))
