"""Measures frames per second of an import against a plain loop over the same decoder, in one process each, alternately.

    python -m bench.bench_import [--rounds 5]

The loop decodes the frames that the import keeps, and does nothing else. The import also reads the numbers and checks
them, cuts and resizes each image, takes its statistics and encodes it as JPEG: what a fleet of jobs.import_dataset
does. Sources: what lerobot wrote for the tests (64 x 48 px), and RLDS and HDF5 made here (256 x 256 px).
"""

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tyro
from PIL import Image

from tap_ray.importing import tfrecord
from tap_ray.importing.convert import ConvertOptions, episode_of, motion
from tap_ray.importing.settings import open_source, read_mapping
from tap_ray.importing.source import Source
from tests.importing import toy_arm
from tests.importing.make_rlds import write_rlds

DATA = Path("tests/importing/data")
SIDE, EPISODES = 256, 6


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the benchmark."""

    rounds: int = 5
    """Number of rounds of both, in turn; the median of the rounds' ratios is printed."""


def filled(rgb: np.ndarray) -> np.ndarray:
    """(T, SIDE, SIDE, 3): as hard to encode as a photograph is."""
    noise = np.random.default_rng(0).integers(0, 60, (SIDE // 4, SIDE // 4, 3), np.uint8)
    texture = np.kron(noise, np.ones((4, 4, 1), np.uint8))
    return texture + rgb[:, :1, :1].astype(np.uint8)


def plain_rlds(folder: Path, frames: dict[int, list[int]]) -> int:
    """Records, parsed, and their images; no checksums."""
    [file] = folder.glob("*/*.tfrecord-*")
    done = 0
    for episode, (offset, length) in enumerate(tfrecord.index(file)):
        with file.open("rb") as stream:
            stream.seek(offset)
            encoded = tfrecord.values(stream.read(length))["steps/observation/image_0"]
        done += len([np.asarray(Image.open(io.BytesIO(encoded[frame]))) for frame in frames[episode]])
    return done


def plain_hdf5(folder: Path, frames: dict[int, list[int]]) -> int:
    """The rows of the frames."""
    done = 0
    for episode, file in enumerate(sorted(folder.glob("*.hdf5"))):
        with h5py.File(file) as groups:
            images = groups["data/demo_0/obs/agentview_rgb"]
            assert isinstance(images, h5py.Dataset)
            done += len(images[frames[episode]])
    return done


def plain_lerobot(source: Source, camera: str, frames: dict[int, list[int]]) -> int:
    """The decoder of the source: PyAV or Pillow."""
    return sum(len(source.images(episode, camera, kept)) for episode, kept in frames.items())


def main(config: Config) -> None:
    """Print one row per source."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        episodes = []
        for number in range(EPISODES):
            steps = toy_arm.bridge(number)
            wide = {key: filled(rows) for key, rows in steps.items() if key == "observation/image_0"}
            episodes.append({key: rows for key, rows in steps.items() if "image" not in key} | wide)
        rlds = write_rlds(folder / "bridge_dataset", episodes, files=1)
        hdf5 = toy_arm.write_libero_hdf5(folder / "hdf5", EPISODES, images=filled)
        rows: list[tuple[str, Path, str, Callable[..., int] | None]] = [
            ("RLDS, JPEG", rlds, "bridge", plain_rlds),
            ("HDF5, raw", hdf5, "libero_hdf5", plain_hdf5),
            ("LeRobot v3.0, PNG in Parquet", DATA / "v30_image", "so100", None),
            ("LeRobot v3.0, AV1", DATA / "v30_video", "so100", None),
            ("LeRobot v2.1, AV1", DATA / "v21_video", "so100", None),
        ]
        for title, place, mapping_name, plain in rows:
            print(f"{title:30}" + compared(place, mapping_name, plain, config.rounds))


def compared(place: Path, mapping_name: str, plain: Callable[..., int] | None, rounds: int) -> str:
    """Rates of both and their ratio."""
    source, mapping = open_source(place), read_mapping(Path(mapping_name))
    frames = {n: motion(mapping, source, n)[2][:-1].tolist() for n in range(source.num_episodes)}
    total = sum(len(kept) for kept in frames.values())
    rates = []
    for _ in range(rounds):
        begin = time.process_time()
        done = plain_lerobot(open_source(place), mapping.camera, frames) if plain is None else plain(place, frames)
        middle = time.process_time()
        assert done == total
        fresh = open_source(place)
        for number in frames:
            episode_of(mapping, fresh, number, index=number, options=ConvertOptions(quality=90))
        rates.append((total / (middle - begin), total / (time.process_time() - middle)))
    loop, ours = np.median(rates, axis=0)
    ratio = np.median([b / a for a, b in rates])
    speeds = f"loop {loop:7.0f}, import {ours:7.0f} frames/s of CPU time, ratio {ratio:.2f}"
    return f"{speeds} ({total} frames, {rounds} rounds)"


if __name__ == "__main__":
    main(tyro.cli(Config))
