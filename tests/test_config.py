import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from tap_ray import config
from tap_ray.errors import ConfigError
from tap_ray.evaluate.settings import EvaluateConfig
from tap_ray.job import run_job
from tap_ray.settings import AlignJobConfig, PriorJobConfig


@dataclass(frozen=True, kw_only=True)
class Model:
    width: int = 64
    rate: float = 0.5
    range_m: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    model: Model = field(default_factory=Model)
    tasks: tuple[str, ...] = ("a", "b")
    head: Literal["regression", "flow"] = "regression"
    limit: int | None = None
    live: bool = False


FULL = Config(data=Path("d"), model=Model(width=3, rate=0.25), tasks=("x",), head="flow", limit=5, live=True)


def test_there_and_back():
    assert config.from_dict(Config, config.to_dict(FULL)) == FULL


def test_plain_values():
    assert config.to_dict(FULL) == {
        "data": "d",
        "model": {"width": 3, "rate": 0.25, "range_m": [0.0, 1.0]},
        "tasks": ["x"],
        "head": "flow",
        "limit": 5,
        "live": True,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "d", "modle": {}}, "config: unknown key 'modle'. Did you mean 'model'? Known: data, head"),
        ({"data": "d", "model": {"widht": 1}}, "config: model: unknown key 'widht'. Did you mean 'width'?"),
        ({"data": "d", "head": "flwo"}, "config: head: 'flwo' is not one of ['regression', 'flow']."),
        ({"data": "d", "limit": "many"}, "config: limit: expected int, got 'many'."),
        ({"data": "d", "limit": True}, "config: limit: expected int, got True."),
        ({"data": "d", "live": 1}, "config: live: expected bool, got 1."),
        ({"data": "d", "tasks": "carrot"}, "config: tasks: expected a list, got 'carrot'."),
        ({"data": "d", "tasks": [1]}, "config: tasks: expected str, got 1."),
        ({"data": "d", "model": {"rate": "fast"}}, "config: model: rate: expected float, got 'fast'."),
        (
            {"data": "d", "model": {"range_m": [1]}},
            "config: model: range_m: expected a list of 2 values, got 1: [1].",
        ),
        (
            {"data": "d", "model": {"range_m": [1, 2, 3]}},
            "config: model: range_m: expected a list of 2 values, got 3: [1, 2, 3].",
        ),
        ({"data": "d", "model": {"range_m": [1, "far"]}}, "config: model: range_m: expected float, got 'far'."),
        ({"data": "d", "model": 3}, "config: model: expected keys and values for Model, got 3."),
        ({"data": 3}, "config: data: expected Path, got 3."),
        ({}, "config: Config needs a value for data."),
        (["data"], "config: expected keys and values for Config, got ['data']."),
    ],
)
def test_each_mistake_is_named(values, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        config.from_dict(Config, values)


@pytest.mark.parametrize(("text", "rate"), [("1", 1.0), ("1e-4", 1e-4), ("1.5e-3", 1.5e-3), (".5", 0.5)])
def test_yaml_numbers(tmp_path, text, rate):
    # YAML 1.1 reads 1e-4, which has no dot, as a string.
    file = tmp_path / "c.yaml"
    file.write_text(f"data: d\nlimit: null\nmodel: {{rate: {text}}}\n")
    assert config.load(Config, file).model.rate == rate


def test_json_is_yaml(tmp_path):
    (tmp_path / "c.json").write_text('{"data": "d", "tasks": ["x", "y"]}')
    assert config.load(Config, tmp_path / "c.json").tasks == ("x", "y")


def test_json_is_read_as_json(tmp_path):
    """Escapes of an emoji, tabs and a byte order mark, none of which YAML takes as JSON means them."""
    (tmp_path / "c.json").write_text('\ufeff{\n\t"data": "l\\u00e4ufe/\\ud83e\\udd16"\n}', encoding="utf-8")
    assert config.load(Config, tmp_path / "c.json").data == Path("läufe/🤖")
    (tmp_path / "c.json").write_text("data: d")
    with pytest.raises(ConfigError, match=r"c\.json is not valid JSON: Expecting value: line 1"):
        config.load(Config, tmp_path / "c.json")


@pytest.mark.parametrize("text", ["data: d\nmodel: {width: 1, rate: 1.0, width: 2}", "data: d\nwidth: 1\nwidth: 2"])
def test_a_key_given_twice_is_an_error_in_yaml(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml has the key 'width' twice\. Keep one of them\."):
        config.load(Config, tmp_path / "c.yaml")


def test_a_key_given_twice_is_an_error_in_json_too(tmp_path):
    (tmp_path / "c.json").write_text('{"data": "d", "data": "e"}')
    with pytest.raises(ConfigError, match=r"c\.json has the key 'data' twice\. Keep one of them\."):
        config.load(Config, tmp_path / "c.json")


def test_yaml_may_merge_what_it_overrides(tmp_path):
    (tmp_path / "c.yaml").write_text("data: d\nmodel: &a {width: 1, rate: 1.0}\n")
    assert config.load(Config, tmp_path / "c.yaml").model.width == 1
    assert yaml.load("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", config.YamlLoader)["b"] == {"x": 3, "y": 2}


def test_fields_that_were_not_given_are_listed():
    values = {"data": "d", "model": {"width": 3}, "head": "flow", "limit": None, "live": False}
    made = config.from_dict(Config, values)
    assert config.absent(made, values) == "model.rate = 0.5, model.range_m = (0.0, 1.0), tasks = ('a', 'b')"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read the config file .*nowhere.yaml: No such file"):
        config.load(Config, tmp_path / "nowhere.yaml")
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"c.yaml is not valid YAML: "):
        config.load(Config, tmp_path / "c.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match=r"list.yaml: expected keys and values for Config, got \['a'\]"):
        config.load(Config, tmp_path / "list.yaml")


def test_a_digest_names_values_not_their_order():
    assert config.digest({"a": 1, "b": [2, 3]}) == config.digest({"b": [2, 3], "a": 1}) == "fd28b17488e0d3ec"
    assert config.digest({"a": 1, "b": [3, 2]}) != config.digest({"a": 1, "b": [2, 3]})


def test_differences_name_each_key():
    old = {"a": 1, "model": {"width": 64, "rate": 0.5}, "gone": 0}
    new = {"a": 1, "model": {"width": 128, "rate": 0.5}, "new": "x"}
    assert config.differences(old, new) == [
        "gone: 0 before, '(absent)' now",
        "model.width: 64 before, 128 now",
        "new: '(absent)' before, 'x' now",
    ]


JOB = '''
"""Prints what it got."""
from dataclasses import dataclass
from pathlib import Path
from tap_ray.job import run_job
from tap_ray.errors import DataError

@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    """Folder to read."""
    steps: int = 3
    """Steps, 0: none."""
    tasks: tuple[str, ...] = ("a",)
    live: bool = False

def main(config: Config) -> Path:
    print(config)
    if config.steps == 13:
        raise DataError("expected a, got b: do c")
    if config.steps == 14:
        raise KeyboardInterrupt
    return config.data

if __name__ == "__main__":
    run_job(main, Config)
'''


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB)
    (folder / "c.yaml").write_text("steps: 7\ntasks: [x, y]\n")
    (folder / "typo.yaml").write_text("stpes: 7\n")

    def run(*flags):
        return subprocess.run(
            [sys.executable, "job.py", *flags], cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def test_a_job_prints_its_result_last(job):
    completed = job("--data", "some/where", "--steps", "1")
    assert completed.returncode == 0
    assert completed.stdout.splitlines()[-1] == "some/where"
    assert "steps=1" in completed.stdout


@pytest.mark.parametrize("flags", [("--config", "c.yaml"), ("--config=c.yaml",)])
def test_flags_win_over_the_file_and_the_file_over_defaults(job, flags):
    completed = job(*flags, "--data", "d", "--steps", "5")
    assert "steps=5" in completed.stdout, completed.stderr
    assert "tasks=('x', 'y')" in completed.stdout
    completed = job("--data", "d", *flags)
    assert "steps=7" in completed.stdout, completed.stderr


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--data", "d", "--steps", "13"), 2, "error: expected a, got b: do c\n"),
        (("--data", "d", "--config", "typo.yaml"), 2, "unknown key 'stpes'. Did you mean 'steps'?"),
        (("--data", "d", "--config"), 2, "--config needs a file"),
        (("--data", "d", "--stpes", "3"), 2, "--steps"),
        (("--data", "d", "--steps", "few"), 2, "few"),
        ((), 2, "--data"),
        (("--config", "c.yaml"), 2, "--data"),
        (("--data", "d", "--steps", "14"), 130, "interrupted: run the same command again"),
    ],
)
def test_a_users_mistake_ends_in_one_message_and_status_2(job, flags, status, message):
    completed = job(*flags)
    assert completed.returncode == status
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr


def test_help_tells_units(job):
    completed = job("--help")
    assert completed.returncode == 0
    assert "Prints what it got." in completed.stdout
    assert "Steps, 0: none." in completed.stdout


@dataclass(frozen=True, kw_only=True)
class Places:
    data: Path
    out: Path | None = None
    more: tuple[Path, ...] = ()


@pytest.mark.parametrize(
    ("uri", "kind"), [("s3://bucket/play", "S3Path"), ("file:///mnt/play", "PosixPath"), ("play", "PosixPath")]
)
def test_a_path_may_be_a_uri_in_flags_files_and_back(
    uri: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(config.storage, "require_reachable", lambda path: None)
    (tmp_path / "c.yaml").write_text(f"data: {uri}\nout: {uri}\nmore: [{uri}, {uri}/2]\n")
    seen: list[Places] = []

    def main(given: Places) -> Path:
        seen.append(given)
        return given.data

    for argv in (["--data", uri, "--out", uri, "--more", uri, f"{uri}/2"], ["--config", str(tmp_path / "c.yaml")]):
        monkeypatch.setattr(sys, "argv", ["job", *argv])
        run_job(main, Places)
        assert capsys.readouterr().out == uri.removeprefix("file://") + "\n"
    monkeypatch.setattr(sys, "argv", ["job", "--config", str(tmp_path / "c.yaml"), "--data", "s3://other/x"])
    run_job(main, Places)
    assert str(seen[2].data) == "s3://other/x"
    assert seen[0] == seen[1] == config.from_dict(Places, config.to_dict(seen[0]))
    assert {type(path).__name__ for given in seen for path in (given.out, *given.more)} == {kind}


def test_every_uri_of_a_config_is_asked_before_the_job_starts(monkeypatch: pytest.MonkeyPatch):
    reached: list[str] = []
    monkeypatch.setattr(config.storage, "require_reachable", lambda path: reached.append(str(path)))
    tasks = ["s3://b/two:3", "ray://host:10001", "sqlite:///x.db", "data/three:2"]
    monkeypatch.setattr(sys, "argv", ["job", "--data", "s3://a/one", "--tasks", *tasks])
    run_job(lambda given: given.data, Config)
    assert reached == ["s3://a/one", "s3://b/two:3"]


def test_a_uri_that_cannot_be_is_a_flags_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["job", "--data", "s3://bucket"])
    with pytest.raises(SystemExit) as ended:
        run_job(lambda given: given.data, Config)
    assert ended.value.code == 2
    assert "does not name a folder" in " ".join(capsys.readouterr().err.split())


def test_former_names_of_fields_are_read(tmp_path: Path):
    (tmp_path / "old.yaml").write_text("workers: {workers: 2, decoders: 3}\nalign: {take: vision}\nhistory: 0")
    read = config.load(AlignJobConfig, tmp_path / "old.yaml", missing="x")
    assert (read.workers.num_workers, read.workers.num_data_workers, read.align.load) == (2, 3, "vision")


def test_the_config_json_of_a_former_training_is_read(tmp_path: Path):
    """As jobs.pretrain_prior wrote it at ec868ce^: the number of workers, and the other runtime settings apart."""
    where = {"workers": 2, "threads": 3, "decoders": 4, "ray_address": None, "node_labels": ["role=train"]}
    former = {"train": {"steps": 40}, "workers": 2, "data": [["play", 1.0]], "_spelt": {"data": ["play"]}}
    (tmp_path / "config.json").write_text(json.dumps({**former, "_where": where}))
    read = config.load(PriorJobConfig, tmp_path / "config.json")
    assert (read.train.steps, read.data, read.workers.num_workers, read.workers.threads) == (40, ("play",), 2, 3)
    assert (read.workers.num_data_workers, read.workers.node_labels) == (4, ("role=train",))


def test_the_config_json_of_a_former_evaluation_is_read(tmp_path: Path):
    protocol = {"hash": "901fbcd87922ca2d", "tasks": ["push_pumpkin_left"], "env_version": "3", "suite": "tabletop"}
    protocol |= {"scenarios": ["standard"], "episodes": 12, "seed": 7, "sim": "pybullet", "success": "once"}
    former = {"policy": "runs/tap", "name": "", "out": None, "_fleets": 2, "_node_labels": [], "protocol": protocol}
    (tmp_path / "config.json").write_text(json.dumps(former))
    assert config.load(EvaluateConfig, tmp_path / "config.json") == EvaluateConfig(
        policy="runs/tap", tasks=("push_pumpkin_left",), episodes=12, seed=7, sim="pybullet", fleets=2
    )
