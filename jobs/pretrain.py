"""Stage 1: learn to move, from play. Run the same command again and it goes on from its newest checkpoint.

`python -m jobs.pretrain ...` learns to move to things and to put them down, `python -m jobs.pretrain motion-prior ...`
a motion prior.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Sequence

import envs
from jobs import collect_play
from tap_ray import runs
from tap_ray.config import require_used
from tap_ray.dataset.motions import MotionWindows, bytes_read, counts, load
from tap_ray.dataset.reader import DatasetInfo, open_dataset, require_whole
from tap_ray.dataset.windows import require_batches
from tap_ray.distributed import live, stream
from tap_ray.distributed.connect import connect
from tap_ray.distributed.crops import cut_missing
from tap_ray.distributed.record import pool_of
from tap_ray.distributed.settings import FOLLOWS, PretrainConfig, PriorJobConfig
from tap_ray.distributed.train import require_sensible, run_stage
from tap_ray.errors import ConfigError
from tap_ray.evaluate import motion_prior as examine_prior
from tap_ray.evaluate.video import side_by_side, write_video
from tap_ray.job import run_job
from tap_ray.models.prior_files import load_prior
from tap_ray.play.settings import plan_of
from tap_ray.pretrain import from_play, health, motion_prior
from tap_ray.rollout import Replay, rollout
from tap_ray.training.session import Learner, final_metrics, learner_of
from tap_ray.training.stage import FINAL, require_held_out
from tap_ray.types import EnvConfig

REPORT = "report.json"
"""What a prior knows, in its run folder."""
VIDEO_PX = 192
"""Side of each panel of the interpolation videos, px."""


def learner(config: PretrainConfig, dataset: DatasetInfo) -> Learner:
    """What learns, built in each training process; the data set as the driver has opened it, whoever extends it."""
    windows = config.sized_windows()
    if config.live_play:  # nobody trains on these episodes: half are enough to judge on, all give statistics
        windows = replace(windows, holdout_every=2, num_episodes=config.play.episodes)
    seed = config.train.seed
    stage = from_play.from_dataset(dataset, windows, policy=config.policy, config=config.objective, seed=seed)
    return learner_of(stage, episodes=windows.num_episodes or len(dataset))


def main(config: PretrainConfig) -> Path:
    """Train, print the metrics on held-out play; returns the run folder."""
    if (config.data is None) != config.live_play:
        raise ConfigError("Pretraining needs a data set of play, --data PATH, or --live-play, and not both.")
    if config.data is None:
        return _live(config)
    require_sensible(config.train, config.workers)
    data, windows = config.data.resolve(), config.sized_windows()
    dataset = open_dataset(data)
    if config.objective.next_object:
        require_held_out(dataset, windows)
        cut_missing(data, config.workers.ray_address)
        dataset = open_dataset(data)
    build = partial(learner, config, dataset)
    built = build()  # what is wrong with the data or the sizes is said before Ray starts
    require_used(config.windows, windows, of="windows", follows=FOLLOWS)
    require_used(config.policy, built.model.config, of="policy", follows=FOLLOWS)
    require_whole(dataset)
    require_batches(dataset, windows, num_workers=config.workers.workers)
    batches = partial(stream.batches, dataset, windows, seed=config.train.seed, **config.workers.stream())
    return healthy(run_stage("pretrain", config, learner=build, batches=batches, parents={"data": data}))


def healthy(run: Path) -> Path:
    """Say whether Stage 1 is ready to be aligned; returns its folder."""
    print(health.verdict(final_metrics(run)))
    return run


def prior_learner(config: PriorJobConfig, sets: Sequence[DatasetInfo]) -> Learner:
    """What learns a motion prior, built in each training process."""
    _, weights = config.sources()
    stage = motion_prior.from_datasets(
        sets, weights, config.sized_windows(), config=config.prior, seed=config.train.seed
    )
    return learner_of(stage, episodes=sum(map(len, sets)))


def prior(config: PriorJobConfig) -> Path:
    """Train a motion prior, print how well it rebuilds held-out motion; returns the run folder."""
    paths, weights = config.sources()
    sets = [open_dataset(path) for path in paths]
    build = partial(prior_learner, config, sets)
    built = build()  # what is wrong with the data or the sizes is said before Ray starts
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


def report(run: Path, paths: Sequence[Path], windows: MotionWindows) -> None:
    """What the prior knows of each robot: a video of the way between two latents, and (last) its numbers."""
    trained = load_prior(run / FINAL)
    known = {}
    for path, source in zip(paths, trained.sources, strict=True):
        train, held_out = (load(path, windows, held_out=out, norm=source.norm) for out in (False, True))
        robot = source.spec.robot
        known[robot] = examine_prior.examine(trained, source, train, held_out)
        scene = EnvConfig(robot=robot, max_steps=trained.network.config.chunk, image_size=VIDEO_PX)
        actions = examine_prior.interpolated(trained, source, held_out)
        env = envs.make_vector(scene, len(actions))
        done = rollout(env, Replay(actions), env_seeds=[0] * len(actions), policy_seeds=[0] * len(actions))
        env.close()
        frames = side_by_side([trajectory.rgb for trajectory in done.trajectories])
        write_video(run / "videos" / f"interpolation-{robot}.mp4", frames, fps=source.spec.control_hz)
    runs.write_json(run / REPORT, known)


def _live(config: PretrainConfig) -> Path:
    with connect(config.workers.ray_address):
        data = collect_play.main(config.play).resolve()
        plan = plan_of(config.play)
        play = live.LivePlay(
            plan=plan,
            make_player=partial(collect_play.fleet, plan, config.play.robots_per_fleet, None),
            spec=open_dataset(data).spec,
            reserved=2 * config.play.episodes,  # attempts that crashed have been replaced by the ones after them
            pool=pool_of(config.play),
        )
        batches = partial(live.batches, play, config.sized_windows(), seed=config.train.seed)
        build = partial(learner, config, open_dataset(data))
        return healthy(run_stage("pretrain", config, learner=build, batches=batches, parents={"judged_on": data}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["motion-prior"]:
        del sys.argv[1]
        run_job(prior, PriorJobConfig)
    else:
        run_job(main, PretrainConfig)
