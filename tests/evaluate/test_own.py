"""A user's own policy by module:Class."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from jobs import evaluate
from tap_ray.errors import ConfigError, TapRayError
from tap_ray.evaluate.own import is_reference, own_policy
from tap_ray.evaluate.settings import EvaluateConfig
from tap_ray.runs import read_json
from tap_ray.types import EnvConfig

MODULE = """
import numpy as np

class Still:
    def reset(self, obs, info, seeds): ...
    def act(self, obs, info):
        return np.zeros((len(obs["rgb"]), 7), np.float32)

class Sized(Still):
    def __init__(self, scene, num_robots):
        self.arguments = (scene.task, num_robots)

class Strange(Still):
    def __init__(self, one): ...

class Mute:
    def reset(self, obs, info, seeds): ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_class_with_and_without_arguments(module: str) -> None:
    still = own_policy(f"{module}:Still")(EnvConfig(), 3)
    assert still.act({"rgb": np.zeros((3, 4, 4, 3))}, {}).shape == (3, 7)
    sent = pickle.loads(pickle.dumps(own_policy(f"{module}:Sized")))
    assert sent(EnvConfig(task="stack_green_on_yellow"), 5).arguments == ("stack_green_on_yellow", 5)


def test_what_is_no_policy_is_said(module: str, tmp_path: Path) -> None:
    for name, says in {
        f"{module}_:Still": rf"No module named '{module}_'\. Modules are searched in {tmp_path} and on PYTHONPATH",
        f"{module}:Stil": "has no attribute 'Stil'. Give a class or function of the module",
        f"{module}:Mute": r"a policy needs reset\(obs, info, seeds\) and act\(obs, info\); Mute lacks act",
        f"{module}:Strange": "Strange is called without arguments, or with the scene",
    }.items():
        with pytest.raises(ConfigError, match=says):
            own_policy(name)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("my.module:Class", True), ("expert", False), ("runs/tap", False), ("models:/tap/1", False), ("s3://b/r", False)],
)
def test_what_is_taken_for_a_module(text: str, is_one: bool) -> None:
    assert is_reference(text) is is_one


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_it_is_evaluated_as_any_other(module: str, tmp_path: Path, mlflow_uri: str) -> None:
    """From a module that the fleets' processes must find by themselves; other code is another run."""
    config = EvaluateConfig(
        policy=f"{module}:Still", tasks=("put_carrot_on_plate",), episodes=2, max_steps=4, image_size=32, fleets=1,
        out=tmp_path / "evaluated",
    )  # fmt: skip
    results = read_json(evaluate.main(config) / "results.json")
    assert results["policy"]["name"] == f"{module}:Still"
    made_by = read_json(tmp_path / "evaluated/manifest.json")["made_by"]
    assert made_by["code"] == own_policy(config.policy).code
    (tmp_path / f"{module}.py").write_text(MODULE + "\n")
    with pytest.raises(TapRayError, match="code"):
        evaluate.main(config)
