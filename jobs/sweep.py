"""Sweep over the settings of both stages: many trials with Ray Tune, a table, a page; the best policy is registered.

`python -m jobs.sweep tune_configs/smoke.yaml` collects the play and the demonstrations that do not exist yet, trains,
evaluates, and writes a page and the results; --dry-run only predicts what it will cost. The same command resumes where
it was interrupted.
"""

from dataclasses import replace
from pathlib import Path

from jobs import align, collect_demos, collect_play, evaluate, pretrain, pretrain_prior
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.distributed import sweep_collect
from tap_ray.distributed.record import header_of
from tap_ray.distributed.sweep_job import forecast, require_local, run_sweep
from tap_ray.distributed.sweep_trial import Stages
from tap_ray.job import run_job
from tap_ray.play.settings import DemosJobConfig, PlayJobConfig
from tap_ray.sweep import plan as sweep_plan
from tap_ray.sweep.settings import SweepJobConfig

COLLECTORS = sweep_collect.Collectors(play=collect_play.main, demos=collect_demos.main)
STAGES = Stages(pretrain=pretrain.main, prior=pretrain_prior.main, align=align.main, evaluate=evaluate.main)


def main(config: SweepJobConfig) -> Path:
    """Run every trial that has not ended, print the table; returns the run folder (of a dry run, the sweep's file)."""
    require_local(config)
    plan = sweep_plan.read(config.sweep, data=config.data, demos=config.demos)
    have = sweep_collect.planned_datasets(plan, dataset_header, config.sweep)
    trials = sweep_plan.trials(plan, config.sweep, have)
    missing = sweep_collect.missing(plan, trials, have, config.sweep)
    sweep_collect.require_metric(plan, config.sweep)
    world = evaluate.chosen_world(trials[0].evaluate)  # that of all trials
    protocol = evaluate.checked_protocol(trials[0].evaluate, world)
    sweep_collect.require_robot(plan, have, protocol, config.sweep)
    if config.dry_run:
        print(forecast(config, plan, trials, protocol, missing))
        return config.sweep
    sweep_collect.collect(missing, COLLECTORS, config.ray_address)
    trials = sweep_plan.trials(plan, config.sweep)  # compared with what exists now
    trials = [replace(trial, gpu_scenes=world.gpu) for trial in trials]
    sweep_collect.require_metric(plan, config.sweep)
    sweep_collect.cut_crops(trials, config.ray_address)
    return run_sweep(config, plan, trials, stages=STAGES, protocol=protocol)


def dataset_header(config: PlayJobConfig | DemosJobConfig) -> DatasetHeader:
    """The header of the dataset that a collection job makes."""
    demos = isinstance(config, DemosJobConfig)
    plan, world = collect_demos.planned(config) if demos else collect_play.planned(config)
    return header_of(plan, world.spec(plan.env), entries=world.plan_entries, **world.header_fields)


if __name__ == "__main__":
    run_job(main, SweepJobConfig)
