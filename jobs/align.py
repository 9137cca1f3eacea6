"""Stage 2: learn what to do, from demonstrations with instructions, on Stage 1 weights or from scratch."""

from functools import partial
from pathlib import Path

from tap_ray import presets
from tap_ray.command_line import Offers
from tap_ray.dataset.reader import require_readable
from tap_ray.dataset.schedule import require_batches
from tap_ray.distributed import stream
from tap_ray.distributed.crops import cut_missing
from tap_ray.distributed.train import run_stage, validate_settings
from tap_ray.job import run_job
from tap_ray.planning.jobs import plan_align, require_fit
from tap_ray.settings import AlignJobConfig
from tap_ray.stages import align_shapes, align_stage, open_align


def main(config: AlignJobConfig) -> Path:
    """Train, print the metrics on held-out demonstrations; returns the run folder."""
    validate_settings(config.train, config.workers)
    require_fit(config)
    inputs, workers = open_align(config), config.workers
    needed = [] if inputs.play is None else [*inputs.play.sets]
    cut_missing([*needed, inputs.demos] if config.align.weights.need_crops else needed, workers.ray_address)
    build = partial(align_stage, config, inputs)
    sizes = build().model.network.config  # a checkpoint that does not fit is reported before Ray starts
    require_readable(inputs.demos)
    _, windows = align_shapes(config, inputs.prior)
    config.require_used(windows, sizes)
    require_batches(inputs.demos, windows, num_workers=workers.num_workers)
    batches = partial(stream.batches, inputs.demos, windows, seed=config.train.seed, **workers.stream())
    if inputs.play is not None:
        play = partial(
            stream.mixed_batches, inputs.play, config.play_windows(), seed=config.train.seed, **workers.stream()
        )
        batches = partial(stream.with_play, batches, play)
    metadata = {"episodes": windows.num_episodes or len(inputs.demos)}
    return run_stage("align", config, build=build, batches=batches, parents=inputs.parents(), metadata=metadata)


if __name__ == "__main__":
    run_job(main, AlignJobConfig, Offers(presets=presets.ALIGN, plan=plan_align))
