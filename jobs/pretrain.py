"""Stage 1: learn to move to objects, to grasp them and to put them down, from play. The same command again resumes."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from jobs import collect_play
from tap_ray import presets
from tap_ray.command_line import Offers
from tap_ray.dataset.mixture import open_mixture, require_usable
from tap_ray.distributed import live, stream
from tap_ray.distributed.connect import connect
from tap_ray.distributed.crops import cut_missing
from tap_ray.distributed.train import run_stage, validate_settings
from tap_ray.errors import ConfigError
from tap_ray.job import run_job
from tap_ray.planning.jobs import plan_pretrain, require_fit
from tap_ray.pretrain import health
from tap_ray.settings import PretrainConfig
from tap_ray.stages import pretrain_stage
from tap_ray.training.session import final_metrics
from tap_ray.training.stage import require_held_out


def main(config: PretrainConfig) -> Path:
    """Train, print the metrics on held-out play; returns the run folder."""
    if bool(config.data) == config.live_play:
        raise ConfigError("Pretraining needs either a dataset of play (--data PATH) or --live-play, but not both.")
    validate_settings(config.train, config.workers)
    require_fit(config)
    address, windows, seed = config.workers.ray_address, config.resolve_windows(), config.train.seed
    with connect(address) if config.live_play else nullcontext():
        paths, weights = ([collect_play.main(config.play).resolve()], [1.0]) if config.live_play else config.sources()
        mixture = open_mixture(paths, weights)
        build = partial(pretrain_stage, config, mixture)
        if config.objective.next_object:
            for dataset in mixture.sets if not config.live_play else ():
                require_held_out(dataset, windows)
            cut_missing(mixture.sets, address)
        sizes = build().model.network.config  # what is wrong with the data or the sizes is reported before Ray trains
        config.require_used(windows, sizes)
        if config.live_play:
            plan, world = collect_play.planned(config.play)
            player = partial(collect_play.fleet, plan, config.play.robots_per_fleet, None, world=world)
            play = live.play_of(config.play, plan, player, mixture.spec, gpu=world.gpu)
            live.require_gpus(play, config.workers)
            batches = partial(live.batches, play, windows, seed=seed)
            metadata, parents = {"episodes": config.play.episodes}, {"evaluated_on": paths[0]}
        else:
            require_usable(mixture, windows, num_workers=config.workers.num_workers)
            batches = partial(stream.mixed_batches, mixture, windows, seed=seed, **config.workers.stream())
            metadata, parents = {"episodes": mixture.num_episodes(windows)}, config.parents()
        run = run_stage("pretrain", config, build=build, batches=batches, parents=parents, metadata=metadata)
    print(health.readiness(final_metrics(run)))
    return run


if __name__ == "__main__":
    run_job(main, PretrainConfig, Offers(presets=presets.PRETRAIN, plan=plan_pretrain))
