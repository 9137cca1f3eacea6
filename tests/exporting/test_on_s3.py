"""jobs.export_dataset and jobs.inspect_dataset from and to an object store: the same as on a disk, byte for byte."""

import json
from pathlib import Path

import pytest

from jobs import export_dataset, inspect_dataset
from tap_ray import runs, storage
from tap_ray.exporting.export import MAPPING
from tap_ray.exporting.settings import ExportConfig
from tap_ray.inspect.dataset.report import PAGE, REPORT
from tap_ray.inspect.settings import InspectConfig
from tests.digests import digests
from tests.inspect.flawed import write

JOB_FILES = ("config.json", "manifest.json", ".job.lock")


@pytest.fixture
def both(bucket: str, tmp_path: Path) -> tuple[Path, Path]:
    """The same dataset on a disk and in the bucket."""
    here, there = write(tmp_path / "data", num=4), storage.to_path(bucket) / "data"
    for file in (file for file in here.rglob("*") if file.is_file() and file.suffix != ".lock"):
        storage.write(there / file.relative_to(here), file.read_bytes())
    return here, there


def files(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(out).items() if name not in JOB_FILES and name != MAPPING}


@pytest.mark.parametrize("kind", ["lerobot-v3.0", pytest.param("lerobot-v2.1", marks=pytest.mark.long_proof)])
def test_an_export_is_the_same_there(kind, both: tuple[Path, Path], bucket: str, tmp_path: Path) -> None:
    """Also one that is gone on with after its last file was lost."""
    here, there = both
    local = export_dataset.main(ExportConfig(data=here, out=tmp_path / "export", format=kind, threads=2))
    config = ExportConfig(data=there, out=storage.to_path(bucket) / "export", format=kind, threads=2)
    remote = export_dataset.main(config)
    assert files(remote) == files(local)
    lost = sorted(file for file in remote.rglob("*.parquet") if "data" in file.parts)[-1]
    for file in (lost, remote / "meta/episodes/chunk-000/file-000.parquet"):
        if file.exists():
            storage.remove(file)
    manifest = json.loads(storage.read(remote / "manifest.json"))
    runs.write_json(remote / "manifest.json", manifest | {"status": "running"})
    export_dataset.main(config)
    assert files(remote) == files(local)


@pytest.mark.long_proof
def test_an_inspection_is_the_same_there(both: tuple[Path, Path]) -> None:
    here, there = both
    pages = [inspect_dataset.main(InspectConfig(data=data)) for data in (here, there)]
    assert pages[1] == there / "inspection" / PAGE
    reports = [json.loads(storage.read(page.with_name(REPORT))) for page in pages]
    assert reports[0]["dataset"] != reports[1]["dataset"]
    assert [report | {"dataset": ""} for report in reports] == 2 * [reports[0] | {"dataset": ""}]
    assert len(storage.read(pages[1])) > 10_000
