"""Defines a scenario: a workbench."""

from envs.scene.scenarios import Scenario
from envs.scene.textures import Cloth

BOARD = Cloth(name="board", pattern="stripes", ground_rgb=(0.5, 0.35, 0.2), print_rgb=(0.4, 0.27, 0.15), period_m=0.08)
WORKBENCH = Scenario(
    name="workbench",
    joint_rad=0.1,
    distractors=(("screwdriver", "padlock"), ("spool", "battery")),
    cloths=(BOARD, BOARD),
)
