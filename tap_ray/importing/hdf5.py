"""Reads trajectories in HDF5 as a source: those that ManiSkill records, and robomimic's layout, which LIBERO uses.

    ManiSkill: a .h5 file and a JSON file beside it     robomimic, LIBERO: one or more .hdf5 files
    traj_0/actions                (T, A)                data/demo_0/actions               (T, A)
    traj_0/obs/...                (T + 1, ...)          data/demo_0/obs/...               (T, ...)
    traj_0/obs/sensor_data/CAMERA/rgb  uint8            data/demo_0/obs/agentview_rgb     (T, Y, X, 3) uint8

Columns are named after their place below the episode: "actions", "obs/agent/qpos", "obs/ee_pos".
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tap_ray.errors import DataError
from tap_ray.importing.source import Column

CONTROL_HZ = 20.0
"""Default control rate of ManiSkill and robosuite, Hz, if the file does not state one."""
SENTENCE = "problem_info"
"""Attribute of LIBERO's files with the instruction."""
EPISODES = ("traj_", "demo_")
"""Prefixes of the names of the groups of episodes."""


class Hdf5Source:
    """One trajectory file, or a folder of .hdf5 files."""

    def __init__(self, place: Path) -> None:
        """
        Raises:
            DataError: it is not such a file, or has no images.
        """
        files = sorted(place.glob("*.hdf5")) if place.is_dir() else [place]
        self._episodes: list[tuple[Path, str]] = []
        self._sentences: dict[Path, str] = {}
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        self.fps = CONTROL_HZ
        for file in files:
            try:
                with h5py.File(file) as groups:
                    top: Any = groups.get("data", groups)
                    names = _named(top)
                    arrays = arrays or (_arrays(top[names[0]]) if names else {})
                    self._sentences[file] = _sentence(top.attrs)
                    self.fps = _control_hz(file, top.attrs)
                    self._episodes += [(file, f"{top.name}/{name}") for name in names]
            except OSError as error:
                raise DataError(f"{file} cannot be read as an HDF5 file: {error}. Record it again.") from None
        self.num_episodes = len(self._episodes)
        self.default_instruction = SENTENCE if any(self._sentences.values()) else ""
        self.cameras: dict[str, tuple[int, int]] = {
            name: (shape[1], shape[2]) for name, (shape, kind) in arrays.items() if _is_image(shape, kind)
        }
        if not self.cameras:
            raise DataError(
                f"{place} has no camera images: {', '.join(arrays) or 'no trajectory'}. Replay the trajectories with "
                "images. ManiSkill: python -m mani_skill.trajectory.replay_trajectory --traj-path FILE --obs-mode rgb "
                "--save-traj; robomimic: robomimic/scripts/dataset_states_to_obs.py."
            )
        self.columns = {
            name: Column(size=int(np.prod(shape[1:])))
            for name, (shape, kind) in arrays.items()
            if name not in self.cameras and kind in "fiub"
        }

    def numbers(self, episode: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Column -> (T, size) float64: the observation before each action."""
        file, name = self._episodes[episode]
        with h5py.File(file) as groups:
            group: Any = groups[name]
            steps = len(group["actions"])
            return {each: np.asarray(group[each][:steps], np.float64).reshape(steps, -1) for each in columns}

    def images(self, episode: int, camera: str, frames: Sequence[int]) -> list[np.ndarray]:
        """(Y, X, 3) uint8 images of the requested frames, in order."""
        file, name = self._episodes[episode]
        with h5py.File(file) as groups:
            group: Any = groups[name]
            return list(group[camera][list(frames)])

    def files(self, episode: int, camera: str, frames: Sequence[int]) -> list[bytes]:
        """None: the images are arrays."""
        return []

    def instruction(self, episode: int, column: str) -> str:
        """The instruction in the episode's file; ManiSkill's files have none."""
        return self._sentences[self._episodes[episode][0]]


def _named(groups: Any) -> list[str]:
    """Episode number -> its group."""
    found = [name for name in groups if name.startswith(EPISODES) and name[5:].isdigit()]
    return sorted(found, key=lambda name: int(name[5:]))


def _sentence(attributes: Any) -> str:
    """LIBERO's instruction, without the quotes around it."""
    text = json.loads(attributes[SENTENCE]).get("language_instruction", "") if SENTENCE in attributes else ""
    return "".join(text).strip('"')


def _control_hz(file: Path, attributes: Any) -> float:
    """The control rate, Hz, from ManiSkill's JSON file or from robomimic's "env_args"."""
    beside = file.with_suffix(".json")
    about = json.loads(beside.read_text()).get("env_info", {}) if beside.exists() else {}
    options = about.get("env_kwargs", {}).get("sim_config") or {}
    if "env_args" in attributes:
        options = json.loads(attributes["env_args"]).get("env_kwargs", {})
    return float(options.get("control_freq", CONTROL_HZ))


def _is_image(shape: tuple[int, ...], kind: str) -> bool:
    return len(shape) == 4 and shape[-1] == 3 and kind == "u"


def _arrays(group: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and kind of every array below a group."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    group.visititems(
        lambda name, item: found.update({name: (item.shape, item.dtype.kind)}) if hasattr(item, "shape") else None
    )
    return {name: about for name, about in found.items() if about[0]}
