"""Stage 1: learn to move to objects, to grasp them and to put them down, from play. The same command again resumes."""

from functools import partial
from pathlib import Path

from jobs import collect_play
from tap_ray.dataset.reader import open_dataset, require_whole
from tap_ray.dataset.windows import require_batches
from tap_ray.distributed import live, stream
from tap_ray.distributed.connect import connect
from tap_ray.distributed.crops import cut_missing
from tap_ray.distributed.record import pool_of
from tap_ray.distributed.train import require_sensible, run_stage
from tap_ray.errors import ConfigError
from tap_ray.job import run_job
from tap_ray.pretrain import health
from tap_ray.settings import PretrainConfig
from tap_ray.stages import pretrain_stage
from tap_ray.training.session import final_metrics
from tap_ray.training.stage import require_held_out


def main(config: PretrainConfig) -> Path:
    """Train, print the metrics on held-out play; returns the run folder."""
    if (config.data is None) != config.live_play:
        raise ConfigError("Pretraining needs a dataset of play, --data PATH, or --live-play, and not both.")
    if config.data is None:
        return _live(config)
    require_sensible(config.train, config.workers)
    data, windows = config.data.resolve(), config.sized_windows()
    dataset = open_dataset(data)
    if config.objective.next_object:
        require_held_out(dataset, windows)
        cut_missing(dataset, config.workers.ray_address)
    build = partial(pretrain_stage, config, dataset)
    built = build()  # what is wrong with the data or the sizes is reported before Ray starts
    config.require_used(windows, built.model.network.config)
    require_whole(dataset)
    require_batches(dataset, windows, num_workers=config.workers.num_workers)
    batches = partial(stream.batches, dataset, windows, seed=config.train.seed, **config.workers.stream())
    facts = {"episodes": windows.num_episodes or len(dataset)}
    run = run_stage("pretrain", config, build=build, batches=batches, parents={"data": data}, facts=facts)
    print(health.verdict(final_metrics(run)))
    return run


def _live(config: PretrainConfig) -> Path:
    with connect(config.workers.ray_address):
        dataset = open_dataset(collect_play.main(config.play).resolve())
        if config.objective.next_object:
            cut_missing(dataset)
        plan, world = collect_play.planned(config.play)
        play = live.LivePlay(
            plan=plan,
            make_player=partial(collect_play.fleet, plan, config.play.robots_per_fleet, None, world=world),
            spec=dataset.spec,
            reserved=2 * config.play.episodes,  # attempts that crashed have been replaced by the ones after them
            pool=pool_of(config.play),
        )
        windows = config.sized_windows()
        build = partial(pretrain_stage, config, dataset)
        config.require_used(windows, build().model.network.config)
        batches = partial(live.batches, play, windows, seed=config.train.seed)
        facts, parents = {"episodes": config.play.episodes}, {"judged_on": dataset.path}
        run = run_stage("pretrain", config, build=build, batches=batches, parents=parents, facts=facts)
    print(health.verdict(final_metrics(run)))
    return run


if __name__ == "__main__":
    run_job(main, PretrainConfig)
