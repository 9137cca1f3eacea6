"""Ray Data reads our Parquet as it is."""

from pathlib import Path

import numpy as np
import pytest

from tap_ray.dataset import layout
from tap_ray.dataset.lerobot import open_dataset, read_episode
from tap_ray.media.image import decode_jpeg


@pytest.mark.cluster
@pytest.mark.filterwarnings("default")  # Ray's own, about its future
@pytest.mark.long_proof
def test_ray_data_reads_every_row(play_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        rows = ray.data.read_parquet(str(play_dataset / "data")).take_all()
    finally:
        ray.shutdown()
    rows.sort(key=lambda row: row["index"])
    assert [row["index"] for row in rows] == list(range(100))
    first = read_episode(open_dataset(play_dataset), 0)
    np.testing.assert_array_equal(rows[2]["action"], first.action[2])
    np.testing.assert_array_equal(decode_jpeg(rows[2][layout.IMAGE]["bytes"]), decode_jpeg(first.image_jpeg[2]))
