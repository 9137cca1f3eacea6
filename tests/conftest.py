"""What all tests share: checked shapes, ManiSkill's files where they lie beside the checkout, and an S3 server."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import s3fs
from jaxtyping import install_import_hook

from tests import checked

# The contract's dtypes and shapes, wherever an array is put into one of its types.
install_import_hook(["tap_ray.types", "tap_ray.models.chunk_buffer"], f"{checked.__name__}.{checked.arrays.__name__}")

from tests import s3  # noqa: E402
from tests.shared_folders import made_once  # noqa: E402

ASSETS = Path(__file__).parents[2] / "shared" / "maniskill_assets"
if ASSETS.is_dir():
    os.environ.setdefault("MS_ASSET_DIR", str(ASSETS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that share a local Ray come first, side by side (each start costs 8 s of a core), then those with slow
    tests, so that no core is left alone with one at the end."""
    marked = {(item.path, name) for item in items for name in ("local_ray", "slow") if item.get_closest_marker(name)}
    items.sort(key=lambda item: [(item.path, name) not in marked for name in ("local_ray", "slow")])


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[ExitStack]:
    """Holds the local Ray that modules with the marker `local_ray` share."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module", autouse=True)
def _local_ray_or_none(request: pytest.FixtureRequest, shared_ray: ExitStack) -> None:
    """Tests with the marker `local_ray` and the others of their module find Ray started, all others find it stopped."""
    chosen = [item for item in request.session.items if item.path == request.path]
    if all(item.get_closest_marker("local_ray") is None for item in chosen):
        shared_ray.close()
        return
    import ray  # what imports it takes its time

    from tap_ray.distributed.connect import connect

    if not ray.is_initialized():
        shared_ray.enter_context(connect(num_cpus=2))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.Server]:
    """An S3-compatible server, one for all tests of a process."""
    with s3.served() as server:
        yield server


@pytest.fixture
def bucket(s3_server: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh s3://bucket/folder, the environment that leads to it, and an empty cache."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("TAP_RAY_CACHE", str(tmp_path / "cache"))
    return f"{s3_server.uri}/{tmp_path.name}-{uuid.uuid4().hex[:6]}"


@pytest.fixture
def wire(s3_server: s3.Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Wire]:
    """The way to the server from now on, which notes each request."""
    wire = s3.Wire(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    yield wire
    wire.close()


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with nothing in it, one for all test processes: making one costs 2 s of a core."""
    from tap_ray import tracking  # what imports it takes its time

    def make(folder: Path) -> None:
        tracking.client_of(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return made_once(tmp_path_factory, "empty-mlflow", make) / "mlflow.db"


@pytest.fixture
def mlflow_uri(empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow of the test's own: `tmp_path`/mlflow.db, which the processes that it starts use, too."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 episodes of 8 to 12 steps, 32 px, of the made-up robots of toy_player.py. Read only."""
    from tests.distributed import toy_player  # what imports it takes its time

    return toy_player.robots().write_dataset(tmp_path_factory.mktemp("toy") / "play", 24)
