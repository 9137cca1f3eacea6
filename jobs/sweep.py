"""Sweep over the settings of both stages: many trials with Ray Tune, a table, a page; the best policy is registered.

`python -m jobs.sweep tune_configs/smoke.yaml` collects the play and the demonstrations that do not exist yet, trains,
evaluates, and writes a page and the results; --dry-run only predicts what it will cost. The same command resumes where
it was interrupted.
"""

from pathlib import Path

import envs
from jobs import align, collect_demos, collect_play, evaluate, pretrain, pretrain_prior
from tap_ray.align.objective import BehaviorCloning
from tap_ray.dataset.reader import open_dataset
from tap_ray.distributed import sweep_collect
from tap_ray.distributed.sweep_job import SweepJobConfig, forecast, require_local, run_sweep
from tap_ray.distributed.sweep_trial import Stages
from tap_ray.errors import ConfigError, nearest
from tap_ray.job import run_job
from tap_ray.sweep import plan as sweep_plan
from tap_ray.training.validation import names

COLLECTORS = sweep_collect.Collectors(play=collect_play.main, demos=collect_demos.main)
STAGES = Stages(pretrain=pretrain.main, prior=pretrain_prior.main, align=align.main, evaluate=evaluate.main)


def main(config: SweepJobConfig) -> Path:
    """Run every trial that has not ended, print the table; returns the run folder (of a dry run, the sweep's file)."""
    require_local(config)
    plan = sweep_plan.read(config.sweep, data=config.data, demos=config.demos)
    have = sweep_collect.planned_facts(plan, envs.suite_tasks, config.sweep)
    trials = sweep_plan.trials(plan, config.sweep, have)
    missing = sweep_collect.missing(plan, trials, have, config.sweep)
    require_metric(plan, config.sweep)
    protocol = evaluate.checked_protocol(trials[0].evaluate)
    if config.dry_run:
        print(forecast(config, plan, trials, protocol, missing))
        return config.sweep
    sweep_collect.collect(missing, COLLECTORS, config.ray_address)
    trials = sweep_plan.trials(plan, config.sweep)  # held against what is there now
    require_metric(plan, config.sweep)
    sweep_collect.cut_crops(trials, config.ray_address)
    return run_sweep(config, plan, trials, stages=STAGES, protocol=protocol)


def require_metric(plan: sweep_plan.SweepFile, where: Path) -> None:
    """Raise ConfigError if trials would be stopped by a metric that no alignment on these demonstrations has."""
    if not sweep_collect.num_episodes(plan.demos):
        return  # they are still to be collected
    known = names(BehaviorCloning.name, open_dataset(plan.demos).spec)
    if plan.asha and plan.asha.metric not in known:
        raise ConfigError(f"{where}: asha: unknown metric {plan.asha.metric!r}. {nearest(plan.asha.metric, known)}")


if __name__ == "__main__":
    run_job(main, SweepJobConfig)
