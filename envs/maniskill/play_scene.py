"""Defines the scene of play in ManiSkill: objects of several SIMPLER tasks on the Bridge table, without a goal.

Imported only where ManiSkill runs (envs/maniskill/env.py).
"""

from typing import Any, ClassVar

import numpy as np
from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.base_env import BRIDGE_DATASET_ASSET_PATH, BaseBridgeEnv
from mani_skill.utils import io_utils
from mani_skill.utils.registration import register_env

from envs.maniskill.tasks import MANISKILL_PLAY
from envs.maniskill.tensors import tensor

MODELS = (
    "bridge_spoon_generated_modified",
    "bridge_carrot_generated_modified",
    "baked_green_cube_3cm",
    "eggplant",
)
"""ManiSkill's names of the objects of MANISKILL_PLAY."""
DROP_Z_M = (0.88, 0.887529, 0.887529, 0.90)
"""Heights from which the objects are dropped, ManiSkill's world frame: those of SIMPLER's tasks."""


@register_env(MANISKILL_PLAY.env_id, max_episode_steps=60, asset_download_ids=["bridge_v2_real2sim"])
class PlayInScene(BaseBridgeEnv):
    """A scene of four graspable objects; its success flags have no meaning."""

    objects_excluded_from_greenscreening: ClassVar[list[str]] = list(MODELS)

    def __init__(self, **kwargs: Any) -> None:
        """Start with one position and one orientation; envs/maniskill/env.py draws them."""
        xyz = np.array([[(-0.16 + 0.1 * (i % 2), -0.05 + 0.1 * (i // 2), z) for i, z in enumerate(DROP_Z_M)]])
        quat = np.tile([1.0, 0.0, 0.0, 0.0], (1, len(MODELS), 1))
        at = {"xyz_configs": tensor(xyz, "cpu"), "quat_configs": tensor(quat, "cpu")}
        super().__init__(obj_names=list(MODELS), **at, **kwargs)

    def _load_scene(self, options: dict[str, Any]) -> None:
        cubes = io_utils.load_json(BRIDGE_DATASET_ASSET_PATH / "custom" / "info_bridge_custom_baked_tex_v0.json")
        self.model_db = {**cubes, **self.model_db}
        super()._load_scene(options)

    def evaluate(self) -> dict[str, Any]:
        """ManiSkill's flags; nothing counts as a success here."""
        flags = self._evaluate(success_require_src_completely_on_target=False)
        return {**flags, "success": flags["success"] & False}

    def get_language_instruction(self, **kwargs: Any) -> list[str]:
        """The instruction, which is empty for play."""
        return [""] * self.num_envs
