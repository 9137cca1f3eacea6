"""A motion prior, by flow matching on the actions of play; no image is decoded. The same command again resumes."""

from functools import partial
from pathlib import Path
from typing import Sequence

import envs
from tap_ray import runs
from tap_ray.config import require_used
from tap_ray.dataset.action_chunks import ActionChunkConfig, bytes_read, counts, load
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.distributed import stream
from tap_ray.distributed.train import run_stage
from tap_ray.evaluate.video import side_by_side, write_video
from tap_ray.inspect import motion_prior as examine_prior
from tap_ray.job import run_job
from tap_ray.models.prior_files import load_prior
from tap_ray.pretrain import motion_prior
from tap_ray.rollout import Replay, rollout
from tap_ray.settings import FOLLOWS, PriorJobConfig
from tap_ray.training.session import Learner, learner_of
from tap_ray.training.stage import FINAL
from tap_ray.types import EnvConfig

REPORT = "report.json"
"""What a prior knows, in its run folder."""
VIDEO_PX = 192
"""Side of each panel of the interpolation videos, px."""


def learner(config: PriorJobConfig, sets: Sequence[DatasetInfo]) -> Learner:
    """What learns a motion prior, built in each training process."""
    _, weights = config.sources()
    stage = motion_prior.from_datasets(
        sets, weights, config.sized_windows(), config=config.prior, seed=config.train.seed
    )
    return learner_of(stage, episodes=sum(map(len, sets)))


def main(config: PriorJobConfig) -> Path:
    """Train a motion prior, print how well it rebuilds held-out motion; returns the run folder."""
    paths, weights = config.sources()
    sets = [open_dataset(path) for path in paths]
    build = partial(learner, config, sets)
    built = build()  # what is wrong with the data or the sizes is reported before Ray starts
    require_used(config.windows, config.sized_windows(), of="windows", follows=FOLLOWS)
    require_used(config.prior, built.model.config, of="prior", follows=FOLLOWS)
    counts(weights, config.train.batch_size)
    wanted, total = (sum(sizes) for sizes in zip(*(bytes_read(path) for path in paths), strict=True))
    print(f"States and actions are {wanted / 1e6:.1f} of {total / 1e6:.1f} MB on disk; no image is decoded.")
    windows, seed = config.sized_windows(), config.train.seed
    batches = partial(stream.motion_batches, sets, weights, windows, seed=seed, **config.workers.stream())
    parents = {f"play_{number}": path for number, path in enumerate(paths)}
    run = run_stage("pretrain", config, learner=build, batches=batches, parents=parents)
    if windows.holdout_every:
        if not (run / REPORT).exists():
            report(run, paths, windows)
        print(examine_prior.text(runs.read_json(run / REPORT)))
    return run


def report(run: Path, paths: Sequence[Path], windows: ActionChunkConfig) -> None:
    """What the prior knows of each robot: a video of the way between two latents, and (last) its numbers."""
    trained = load_prior(run / FINAL)
    known = {}
    for path, source in zip(paths, trained.sources, strict=True):
        train, held_out = (load(path, windows, held_out=out, norm=source.norm) for out in (False, True))
        robot = source.spec.robot
        known[robot] = examine_prior.analyze(trained, source, train, held_out)
        scene = EnvConfig(robot=robot, max_steps=trained.network.config.chunk, image_size=VIDEO_PX)
        actions = examine_prior.interpolate_latents(trained, source, held_out)
        env = envs.make_vector(scene, len(actions))
        done = rollout(env, Replay(actions), env_seeds=[0] * len(actions), policy_seeds=[0] * len(actions))
        env.close()
        frames = side_by_side([trajectory.rgb for trajectory in done.trajectories])
        write_video(run / "videos" / f"interpolation-{robot}.mp4", frames, fps=source.spec.control_hz)
    runs.write_json(run / REPORT, known)


if __name__ == "__main__":
    run_job(main, PriorJobConfig)
