"""ManiSkill's recorded trajectories (HDF5, one group an episode, and a JSON file beside it) as a source.

    traj_0/actions                                  (T, A)
    traj_0/obs/...                                  (T + 1, ...) numbers and images; with --obs-mode rgb
    traj_0/obs/sensor_data/CAMERA/rgb               (T + 1, Y, X, 3) uint8

Columns are named after their place below the episode: "actions", "obs/agent/qpos", "obs/extra/tcp_pose".
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
"""ManiSkill's default, where the JSON file does not say."""


class ManiSkillSource:
    """One trajectory file."""

    default_instruction = ""

    def __init__(self, file: Path) -> None:
        """
        Raises:
            DataError: it is no such file, or has no images.
        """
        self._file = file
        beside = file.with_suffix(".json")
        about: dict[str, Any] = json.loads(beside.read_text()) if beside.exists() else {}
        options = about.get("env_info", {}).get("env_kwargs", {})
        self.fps = float((options.get("sim_config") or {}).get("control_freq", CONTROL_HZ))
        try:
            with self._opened() as groups:
                self._names = sorted((n for n in groups if n.startswith("traj_")), key=lambda n: int(n[5:]))
                arrays = _arrays(groups[self._names[0]]) if self._names else {}
        except OSError as error:
            raise DataError(f"{file} is no HDF5 file that can be read: {error}. Record it again.") from None
        self.num_episodes = len(self._names)
        self.cameras: dict[str, tuple[int, int]] = {
            name: (shape[1], shape[2]) for name, (shape, kind) in arrays.items() if _is_image(shape, kind)
        }
        if not self.cameras:
            raise DataError(
                f"{file} has no camera images: {', '.join(arrays) or 'no trajectory'}. Replay it with them: "
                "python -m mani_skill.trajectory.replay_trajectory --traj-path FILE --obs-mode rgb --save-traj"
            )
        self.columns = {
            name: Column(size=int(np.prod(shape[1:])))
            for name, (shape, kind) in arrays.items()
            if name not in self.cameras and kind in "fiub"
        }

    def numbers(self, episode: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Column -> (T, size) float64: the observation before each action."""
        with self._opened() as groups:
            group = groups[self._names[episode]]
            steps = len(group["actions"])
            return {name: np.asarray(group[name][:steps], np.float64).reshape(steps, -1) for name in columns}

    def images(self, episode: int, camera: str, frames: Sequence[int]) -> list[np.ndarray]:
        """(Y, X, 3) uint8 of each of the frames asked for, which come in order."""
        with self._opened() as groups:
            return list(groups[self._names[episode]][camera][list(frames)])

    def _opened(self) -> Any:
        return h5py.File(self._file)

    def instruction(self, episode: int, column: str) -> str:
        """ManiSkill's trajectories have none."""
        return ""


def _is_image(shape: tuple[int, ...], kind: str) -> bool:
    return len(shape) == 4 and shape[-1] == 3 and kind == "u"


def _arrays(group: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and kind of every array below a group."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    group.visititems(
        lambda name, item: found.update({name: (item.shape, item.dtype.kind)}) if hasattr(item, "shape") else None
    )
    return {name: about for name, about in found.items() if about[0]}
