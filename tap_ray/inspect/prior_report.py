"""Writes the report of a trained motion prior into its run folder: numbers and videos of each robot."""

from pathlib import Path
from typing import Sequence

from tap_ray import runs
from tap_ray.dataset.action_chunks import ActionChunkConfig, load
from tap_ray.errors import ConfigError
from tap_ray.evaluate.episodes import MakeVector
from tap_ray.inspect import motion_prior
from tap_ray.media.video import side_by_side, write_video
from tap_ray.models.prior_files import load_prior
from tap_ray.rollout import Replay, rollout
from tap_ray.training.stage import FINAL
from tap_ray.types import EnvConfig

REPORT = "report.json"
VIDEO_PX = 192
"""Side of each panel of the interpolation videos, px."""


def text_of(run: Path, paths: Sequence[Path], windows: ActionChunkConfig, make_vector: MakeVector) -> str:
    """The report as text; it is computed first if it does not exist.

    Args:
        run: run folder of the prior.
        paths: its datasets, in their order.
        windows: the windows of its training.
        make_vector: builds robots.
    """
    if not (run / REPORT).exists():
        write(run, paths, windows, make_vector)
    return motion_prior.text(runs.read_json(run / REPORT))


def write(run: Path, paths: Sequence[Path], windows: ActionChunkConfig, make_vector: MakeVector) -> None:
    """Write a video of each robot, and (last) the numbers; see `text_of`."""
    trained = load_prior(run / FINAL)
    known = {}
    for path, source in zip(paths, trained.sources, strict=True):
        train, held_out = (load(path, windows, held_out=out, norm=source.norm) for out in (False, True))
        robot = source.spec.robot
        known[robot] = motion_prior.analyze(trained, source, train, held_out)
        scene = EnvConfig(robot=robot, max_steps=trained.network.config.chunk, image_size=VIDEO_PX)
        actions = motion_prior.interpolate_latents(trained, source, held_out)
        try:
            env = make_vector(scene, len(actions))
        except ConfigError:  # imported play, or a foreign environment's
            print(f"There is no video of {robot}, because none of the installed simulators has this robot.")
            continue
        done = rollout(env, Replay(actions), env_seeds=[0] * len(actions), policy_seeds=[0] * len(actions))
        env.close()
        frames = side_by_side([trajectory.rgb for trajectory in done.trajectories])
        write_video(run / "videos" / f"interpolation-{robot}.mp4", frames, fps=source.spec.control_hz)
    runs.write_json(run / REPORT, known)
