"""The cluster files against Ray's own schema and KubeRay's API; their commands against bash and our own flags."""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tyro
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tap_ray.play.settings import PlayJobConfig

ROOT = Path(__file__).parents[2]
LAUNCHED = ("cluster.yaml", "clusters/local.yaml")
SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay.schema.yaml").read_text())
FILES = (*LAUNCHED, "clusters/kuberay.yaml", "clusters/Dockerfile")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "clusters/kuberay.yaml").read_text()))


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_accepts_it(name: str):
    config = prepare_config(read(name))
    validate_config(config)  # raises what its schema refuses
    assert config["head_node_type"] in config["available_node_types"]


def test_ray_refuses_a_misspelt_key():
    config = read("cluster.yaml")
    config["available_node_types"]["play"]["lables"] = {}
    with pytest.raises(jsonschema.ValidationError, match="lables"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_has_the_token_and_asks_for_it(name: str):
    config = read(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [
        line for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    first_autoscaler = "RAY_enable_autoscaler_v2=0" in starts[0]
    assert first_autoscaler == (config["provider"]["type"] == "local"), "the second starts no worker of that provider"


@pytest.mark.parametrize("name", LAUNCHED)
def test_what_is_copied_to_the_nodes_is_there_and_installs(name: str):
    """`pip install ~/tap_ray` needs what pyproject.toml names, and every package that it finds."""
    mounts = {remote: local for remote, local in read(name)["file_mounts"].items() if "tap_ray" in remote}
    assert all((ROOT / local).exists() for local in mounts.values())
    assert all(remote == f"~/tap_ray/{local}" for remote, local in mounts.items())
    project = (ROOT / "pyproject.toml").read_text()
    needed = {"pyproject.toml", "README.md", "LICENSE", *re.findall(r'"(\w+)\*"', project)}
    assert set(mounts.values()) == needed


@pytest.mark.parametrize("name", LAUNCHED)
def test_commands_are_bash(name: str):
    config = read(name)
    lists = [value for key, value in config.items() if key.endswith("_commands")]
    lists += [node.get("worker_setup_commands", []) for node in config.get("available_node_types", {}).values()]
    for line in (line for lines in lists for line in lines):
        checked = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
        assert not checked.stderr, line


def test_roles_are_the_same_everywhere():
    launched = read("cluster.yaml")["available_node_types"]
    [_, cluster, _] = documents()
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    for role in ("play", "train"):
        assert launched[role]["labels"] == groups[role]["labels"] == {"role": role}
        assert launched[role]["max_workers"] == groups[role]["maxReplicas"]
        assert launched[role]["min_workers"] == groups[role]["minReplicas"]
    assert launched["head"]["resources"]["CPU"] == 0
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_one_version_of_ray():
    """A node with another one than the head's is refused by it."""
    found = {match for name in FILES for match in re.findall(r"\b2\.\d+\.\d+\b", (ROOT / name).read_text())}
    assert len(found) == 1, found


def test_kuberay_accepts_it():
    found = documents()
    assert [document["kind"] for document in found] == ["PersistentVolumeClaim", "RayCluster", "RayJob"]
    for document in found:
        jsonschema.validate(document, SCHEMA)
    assert found[1]["spec"]["authOptions"] == {"mode": "token"}
    assert found[2]["spec"]["clusterSelector"] == {"ray.io/cluster": found[1]["metadata"]["name"]}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "autoscalerOptions", "version"), 2),
        (("spec", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("spec", "workerGroup"), []),
        (("spec", "rayVersion"), 2.6),
        (("spec", "managedBy"), "kueue"),
        (("metadata", "name"), "tap-ray-" + "x" * 40),
    ],
)
def test_the_schema_refuses_what_kuberay_would(path: tuple[str, ...], value: Any):
    document = copy.deepcopy(documents()[1])
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_every_node_reports_to_the_mlflow_that_we_start():
    service, stateful = yaml.safe_load_all((ROOT / "clusters/mlflow.yaml").read_text())
    [pod] = [stateful["spec"]["template"]]
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == stateful["spec"]["selector"]["matchLabels"]
    uri = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    cluster = documents()[1]["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        assert container["env"] == [{"name": "MLFLOW_TRACKING_URI", "value": uri}]
    postgres, server = pod["spec"]["containers"]
    assert postgres["args"] == ["-c", "listen_addresses="]  # it trusts whoever has its socket
    completed = subprocess.run(
        [Path(sys.executable).with_name("mlflow"), "server", "--help"], capture_output=True, text=True
    )
    flags = [word.partition("=")[0] for word in [*server["command"], *server["args"]] if word.startswith("--")]
    assert set(flags) <= set(re.findall(r"--[\w-]+", completed.stdout)), completed.stderr
    assert uri.removeprefix("http://") in server["command"][-1].split(",")


def test_mlflow_starts_by_a_script_that_is_bash():
    checked = subprocess.run(["bash", "-n", str(ROOT / "clusters/mlflow.sh")], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_jobs_flags_are_ours():
    python, flag, module, *flags = shlex.split(documents()[2]["spec"]["entrypoint"])
    assert [python, flag, module] == ["python", "-m", "jobs.collect_play"]
    config = tyro.cli(PlayJobConfig, args=flags)
    assert config.node_labels == ("role=play",)
    group = documents()[1]["spec"]["workerGroupSpecs"][0]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert config.fleets == cpus * 9 <= cpus * group["maxReplicas"]
