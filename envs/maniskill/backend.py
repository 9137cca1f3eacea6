"""Loads ManiSkill: checks whether it can run here and which of its files the tasks use, and makes one environment.

ManiSkill is imported only when it is used, because that takes 10 s and half a GB.
"""

import gc
import logging
import os
import re
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym

from tap_ray.errors import ConfigError

ASSETS = ("bridge_v2_real2sim", "widowx250s")
TASK_FILES = (
    "tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v*.glb",
    "tasks/bridge_v2_real2sim_dataset/custom/info_bridge_custom*_v0.json",
    "tasks/bridge_v2_real2sim_dataset/custom/models/*/*",
    "tasks/bridge_v2_real2sim_dataset/real_inpainting/bridge_*.png",
    "robots/widowx/**/*",
)
"""Files of the digital twins, below ManiSkill's folder of assets."""
NO_DRIVER = re.compile(r"vk::|rendering device|physical device")
"""SAPIEN's message if no Vulkan driver works."""


def require(*, gpu: bool) -> None:
    """Raise an error if a task cannot be made, with physics on a GPU or not, as far as that is known without making
    one.

    Raises:
        ConfigError: the package, its files or the GPU is missing; the message contains the command that fixes it.
    """
    if find_spec("mani_skill") is None:
        raise ConfigError("ManiSkill needs the package mani-skill (Linux only): pip install mani-skill")
    load()
    if gpu and not import_module("torch").cuda.is_available():
        raise ConfigError("sim 'maniskill_gpu' needs an NVIDIA GPU, but torch finds none. Use --sim maniskill.")


def load() -> Any:
    """Import the package, ready to make a task.

    Raises:
        ConfigError: its files or system libraries are missing; the message contains the commands that fetch them.
    """
    os.environ["MS_SKIP_ASSET_DOWNLOAD_PROMPT"] = "1"  # no interactive question: missing files are reported below
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer; as everywhere here, a process has a core
    try:
        import mani_skill.envs
        from mani_skill.utils.assets.data import is_data_source_downloaded
    except ImportError as error:
        raise ConfigError(
            f"The package mani-skill cannot be loaded: {error}. If that is a system library (libGL, libgthread, "
            "libX11): apt-get install libgl1 libglib2.0-0 libx11-6."
        ) from None
    # It warns about its own settings for every scene; the logger's name does end with a space.
    logging.getLogger("mani_skill ").setLevel(logging.ERROR)
    missing = [name for name in ASSETS if not is_data_source_downloaded(name)]
    if missing:
        raise ConfigError(
            f"ManiSkill's files {' and '.join(missing)} are not in {mani_skill.ASSET_DIR}. Download them: "
            + "; ".join(f"python -m mani_skill.utils.download_asset {name} -y" for name in missing)
            + ". If they are elsewhere, set MS_ASSET_DIR to the folder that contains data/."
        )
    return mani_skill


@cache
def assets_digest() -> str:
    """A hash of the digital twins' files, 8 hex digits: replacements of SIMPLER's scans give another protocol."""
    folder, digest = Path(load().ASSET_DIR), sha256()
    for path in sorted(path for pattern in TASK_FILES for path in folder.glob(pattern) if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:8]


def environment(env_id: str, num_envs: int, sensor: dict[str, Any], *, gpu: bool) -> Any:
    """Make N copies of ManiSkill's environment `env_id`, whose camera has the settings `sensor`.

    Raises:
        ConfigError: no Vulkan driver works.
    """
    load()
    from mani_skill.envs.tasks.digital_twins.base_env import BaseDigitalTwinEnv

    import envs.maniskill.play_scene  # noqa: F401  registers itself with ManiSkill

    _exempt_from_collection()
    try:
        made = gym.make(
            env_id,
            num_envs=num_envs,
            obs_mode="rgb+segmentation",
            sim_backend="physx_cuda" if gpu else "physx_cpu",
            sensor_configs=sensor,
        )
    except RuntimeError as error:
        if not NO_DRIVER.search(str(error)):
            raise
        raise ConfigError(
            f"sim 'maniskill' finds no working Vulkan driver ({error}). `python -m tap_ray.doctor` reports what is "
            "missing; without a GPU: apt-get install libvulkan1 mesa-vulkan-drivers (Mesa 24.3 or newer)."
        ) from None
    env: Any = made.unwrapped
    # Attributes of the class, which all environments of a process would share: a second one would keep the objects of
    # the first out of its background, or lose the first one's photograph (mani-skill 3.0.1).
    env._rgb_overlay_images = dict(env._rgb_overlay_images)
    BaseDigitalTwinEnv._objects_to_remove_from_greenscreen = []
    BaseDigitalTwinEnv._rgb_overlay_images = {}
    return env


@cache
def _exempt_from_collection() -> None:
    """ManiSkill collects garbage with every scene it ends: two thirds of a reset, most of it in libraries."""
    gc.collect()
    gc.freeze()
