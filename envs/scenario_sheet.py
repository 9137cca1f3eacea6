"""Contact sheets: `python -m envs.scenario_sheet docs/scenarios.png [SIM]` shows all scenarios.

`python -m envs.scenario_sheet docs/randomized_play.png [SIM] --randomize` shows randomized play.
`python -m envs.scenario_sheet docs/mixed.png --mixed` shows scenes of two tasks, each with the instructions of both.
"""

import sys
from argparse import ArgumentParser
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import envs
from envs.scene.scenarios import BUILT_IN, Scenario
from tap_ray.errors import exit_status
from tap_ray.types import EnvConfig, RandomizeConfig

TASK, SEED, SIDE_PX, MARGIN_PX = "put_carrot_on_plate", 4, 230, 32
MIXED_PX = 340
"""Width of a scene, px, for an instruction below it."""
COLUMNS = max(scenario.num_variants for scenario in BUILT_IN.values())


def sheet(task: str = TASK, seed: int = SEED, robot: str = "widowx", sim: str = "pybullet") -> Image.Image:
    """An image with a row per scenario and a column per variant of one scene; scenarios without variants show further
    seeds."""
    rows = [_row(scenario, EnvConfig(task=task, robot=robot, sim=sim), seed) for scenario in BUILT_IN.values()]
    high = SIDE_PX + MARGIN_PX
    page = Image.new("RGB", (COLUMNS * SIDE_PX, len(rows) * high), "white")
    draw = ImageDraw.Draw(page)
    for row, images in enumerate(rows):
        for column, (title, image) in enumerate(images):
            draw.text((column * SIDE_PX + 4, row * high + 3), title, fill="black")
            page.paste(Image.fromarray(image), (column * SIDE_PX, row * high + MARGIN_PX))
    return page


def play_sheet(sim: str = "pybullet", *, columns: int = 5, rows: int = 4) -> Image.Image:
    """An image with the first frames of randomized play, one scene each."""
    env = envs.make(EnvConfig(sim=sim, image_size=SIDE_PX, randomize=RandomizeConfig()))
    image = [env.reset(seed=seed)[0]["rgb"] for seed in range(columns * rows)]
    env.close()
    return Image.fromarray(np.vstack([np.hstack(image[row * columns :][:columns]) for row in range(rows)]))


def mixed_sheet(sim: str = "pybullet", *, seed: int = 3) -> Image.Image:
    """An image with scenes of two tasks, and below each the instructions that it is evaluated with."""
    tasks = ("put_spoon_on_cloth", "put_carrot_on_plate", "push_pumpkin_left", "stack_green_on_yellow")
    pairs = list(pairwise((*tasks, "put_eggplant_in_basket")))
    page = Image.new("RGB", (len(pairs) * MIXED_PX, MIXED_PX + MARGIN_PX), "white")
    draw = ImageDraw.Draw(page)
    for column, pair in enumerate(pairs):
        for row, (task, partner) in enumerate((pair, pair[::-1])):
            env = envs.make(EnvConfig(task=task, partner=partner, sim=sim, image_size=MIXED_PX))
            obs, info = env.reset(seed=seed)
            env.close()
            page.paste(Image.fromarray(obs["rgb"]), (column * MIXED_PX, 0))
            draw.text((column * MIXED_PX + 4, MIXED_PX + 3 + 14 * row), f'"{info["instruction"]}"', fill="black")
    return page


def _row(scenario: Scenario, config: EnvConfig, seed: int) -> list[tuple[str, np.ndarray]]:
    env, images = envs.make(replace(config, scenario=scenario.name, image_size=SIDE_PX)), []
    several = scenario.num_variants > 1
    seeds = COLUMNS if scenario.changes else 1
    for column in range(scenario.num_variants if several else seeds):
        options = {"variant": column} if several else None
        obs, _ = env.reset(seed=seed if several else seed + column, options=options)
        images.append((f"{scenario.name}\n{_name(scenario, column)}", obs["rgb"]))
    env.close()
    return images


def _name(scenario: Scenario, variant: int) -> str:
    if scenario.distractors:
        return ", ".join(scenario.distractors[variant])
    named = scenario.cloths or scenario.camera_offsets
    return named[variant].name if named else ""


def main() -> int:
    """Run the command; returns its exit status."""
    parser = ArgumentParser(prog="python -m envs.scenario_sheet", description="Draw a contact sheet of scenes.")
    parser.add_argument("image", type=Path, help="the file to write, .png or .jpg")
    parser.add_argument("sim", nargs="?", default="pybullet", help="simulator (default: pybullet)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--randomize", action="store_true", help="scenes of randomized play instead of the scenarios")
    other.add_argument("--mixed", action="store_true", help="scenes of two tasks, each with the instructions of both")
    flags = parser.parse_args()
    if flags.image.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        parser.error(f"the image must be a .png or .jpg file; got {flags.image}")
    draw = play_sheet if flags.randomize else mixed_sheet if flags.mixed else sheet
    return exit_status(lambda: draw(sim=flags.sim).save(flags.image, quality=85))


if __name__ == "__main__":
    sys.exit(main())
