"""Train a motion prior by flow matching on the actions of play; no image is used. The same command again resumes."""

from functools import partial
from pathlib import Path

import envs
from tap_ray import presets
from tap_ray.command_line import Offers
from tap_ray.config import require_used
from tap_ray.dataset.action_chunks import bytes_read, counts
from tap_ray.dataset.reader import open_dataset
from tap_ray.distributed import stream
from tap_ray.distributed.train import run_stage
from tap_ray.inspect import prior_report
from tap_ray.job import run_job
from tap_ray.planning.jobs import plan_prior
from tap_ray.settings import FOLLOWS, PriorJobConfig
from tap_ray.stages import prior_stage


def main(config: PriorJobConfig) -> Path:
    """Train a motion prior, print how well it rebuilds held-out motion; returns the run folder."""
    paths, weights = config.sources()
    sets = [open_dataset(path) for path in paths]
    build = partial(prior_stage, config, sets)
    sizes = build().network.config  # what is wrong with the data or the sizes is reported before Ray starts
    require_used(config.windows, config.resolve_windows(), of="windows", follows=FOLLOWS)
    require_used(config.prior, sizes, of="prior", follows=FOLLOWS)
    counts(weights, config.train.batch_size)
    needed, total = (sum(sizes) for sizes in zip(*(bytes_read(path) for path in paths), strict=True))
    print(f"States and actions are {needed / 1e6:.1f} of {total / 1e6:.1f} MB on disk; images are not decoded.")
    windows, seed = config.resolve_windows(), config.train.seed
    batches = partial(stream.motion_batches, sets, weights, windows, seed=seed, **config.workers.stream())
    metadata = {"episodes": sum(map(len, sets))}
    run = run_stage("pretrain", config, build=build, batches=batches, parents=config.parents(), metadata=metadata)
    if windows.holdout_every:
        print(prior_report.text_of(run, paths, windows, envs.make_vector))
    return run


if __name__ == "__main__":
    run_job(main, PriorJobConfig, Offers(presets=presets.PRIOR, plan=plan_prior))
