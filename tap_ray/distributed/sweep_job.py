"""Runs a sweep from start to end: run folder and ledger, MLflow parent, Ray, the trials, the page, the registered
policy."""

import time
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Mapping, Sequence, get_args

from tap_ray import registry, runs, storage, tracking
from tap_ray.config import to_dict
from tap_ray.distributed import gauges
from tap_ray.distributed.connect import connect, dashboard_url
from tap_ray.distributed.placement import capacity
from tap_ray.distributed.sweep import TUNE, max_concurrent_trials, rows_of, sweep
from tap_ray.distributed.sweep_collect import Missing
from tap_ray.distributed.sweep_trial import Stages, SweepContext
from tap_ray.errors import ConfigError, StorageError, TapRayError, without_credentials
from tap_ray.evaluate.protocol import Protocol
from tap_ray.job import JobRun, job_run
from tap_ray.runs import MadeBy
from tap_ray.settings import identity_of, roles_of, sources_of
from tap_ray.sweep import costs as sweep_costs
from tap_ray.sweep import page as sweep_page
from tap_ray.sweep import study_report
from tap_ray.sweep.plan import SweepFile, data_sets
from tap_ray.sweep.settings import SweepJobConfig
from tap_ray.sweep.tables import TRIALS, State, TrialRow, best, cost_text, label, points, rows_json, text_table
from tap_ray.sweep.trial import Trial, play_used
from tap_ray.tracking_place import is_local

PAGE_S = 5.0
"""Shortest time between two updates of the page, s."""


def require_local(config: SweepJobConfig) -> None:
    """Raise ConfigError where the results are to be written to a URI."""
    if storage.is_remote(config.results):
        raise ConfigError(
            f"--results {config.results}: results are files for a repository, so they must be in a local folder. "
            "Without --results they are written to <out>/results, which may be a URI."
        )


def forecast(
    config: SweepJobConfig, plan: SweepFile, trials: Sequence[Trial], protocol: Protocol, missing: Sequence[Missing]
) -> str:
    """The text that `--dry-run` prints."""
    num_evaluated = min(plan.asha.finalists, len(trials)) if plan.asha else len(trials)
    costs = sweep_costs.forecast(trials, protocol, store=config.store.resolve(), num_evaluated=num_evaluated)
    first = [f"to be collected first, not counted above: {each}" for each in missing]
    return "\n".join([costs, *first])


def run_sweep(
    config: SweepJobConfig, plan: SweepFile, trials: Sequence[Trial], *, stages: Stages, protocol: Protocol
) -> Path:
    """Run a sweep to its end, or resume it where it was interrupted; returns its run folder.

    Raises:
        TapRayError: no trial finished; the reasons are in the ledger.
    """
    store = config.store.resolve()
    identity = {**to_dict(plan), "data": identity_of(plan.data), "protocol": protocol.hash}
    play, used = play_parents(plan, trials), play_used(trials)
    episodes = {role: used.get(path, 0) for role, path in play.items()}
    settings = MadeBy(identity=identity, runtime={"store": str(store)}, episodes=episodes)
    parents: dict[str, Path | str] = {**play, "demos": plan.demos}
    out = config.out or runs.folder_of(store, job="sweep", config=settings, parents=parents)
    with job_run("sweep", config, made_by=settings, parents=parents, out=out) as run:
        storage.make_folder(run.path / TRIALS)
        context = SweepContext(
            folder=run.path.resolve(),
            store=store,
            trials={trial.id: trial for trial in trials},
            stages=stages,
            protocol=protocol,
            fleets=0,
            evaluate=True,
            tracking_uri=tracking.tracking_uri(),
            mlflow_run_id="",
            any_node=_any_node(config, plan, run.path),
        )
        if not run.done:
            _run(config, plan, run, context)
    print(text_table(rows_of(context)))
    manifest = runs.read_json(run.path / "manifest.json")
    for name in ("cost", "registered"):
        if name in manifest:
            print(manifest[name])
    for file in write_results(config, plan, run, rows_of(context)):
        print(f"wrote {file}")
    print(f"open {run.path / sweep_page.PAGE}")
    return run.path


def _run(config: SweepJobConfig, plan: SweepFile, run: JobRun, context: SweepContext) -> None:
    context = replace(context, mlflow_run_id=run.tracked.run_id)
    with connect(config.ray_address, dashboard=config.dashboard):
        resources = capacity()
        at_once = max_concurrent_trials(list(context.trials.values()), resources, config.max_concurrent_trials)
        context = replace(context, fleets=_fleets(context, resources, at_once))
        watch = _Watch(config, plan, run)
        rows = sweep(context, limit=config.max_concurrent_trials, asha=plan.asha, watch=watch)
    runs.write_json(run.path / "table.json", rows_json(rows))
    cost = cost_text(rows, wall_s=watch.seconds(), at_once=at_once)
    run.annotate(cost=cost)
    top = best(rows, plan.metric)
    if top is not None:
        try:
            registered = _register(top, plan, context, run.tracked)
        except StorageError as error:  # the work is done, and the policy lies in its run folder
            registered = f"trial {top.id} was not registered: {error}"
        run.annotate(registered=registered)
    sweep_page.write(run.path, rows, watch.frame(""), running=False)
    run.artifact(sweep_page.PAGE, "table.json")
    failed = [row for row in rows if row.state == "failed"]
    if failed and top is None:
        raise TapRayError(f"No trial finished. Trial {failed[0].id}: {failed[0].error}")
    if failed:
        run.complete = False
        print(f"{len(failed)} of {len(rows)} trials failed. Run the same command to try them again.")


def write_results(config: SweepJobConfig, plan: SweepFile, run: JobRun, rows: Sequence[TrialRow]) -> list[Path]:
    """Write the current results as files to keep; also works for a sweep that has already ended."""
    about = study_report.About(
        name=config.sweep.stem,
        command=command_of(config),
        wall_s=runs.read_json(run.path / "manifest.json").get("seconds", 0.0),
        plan=to_dict(plan),
    )
    return study_report.write(config.results or run.path / "results", rows, about)


def command_of(config: SweepJobConfig) -> str:
    """The command line of this config: the values that differ from the defaults."""
    flags = ["python -m jobs.sweep", str(config.sweep)]
    for each in fields(config):
        value = getattr(config, each.name)
        if each.name != "sweep" and value != each.default:
            name = each.name.replace("_", "-")
            text = " ".join(value) if isinstance(value, tuple) else value
            flags.append(f"--{name}" if value is True else f"--{name} {text}")
    return " ".join(flags)


def play_parents(plan: SweepFile, trials: Sequence[Trial]) -> dict[str, Path]:
    """Role -> dataset of play that a sweep is made from: its own, then those that only arms or motion priors read."""
    parents = _play(plan, "data")
    return parents | roles_of("other_data", [path for path in play_used(trials) if path not in parents.values()])


def _play(plan: SweepFile, name: str) -> dict[str, Path]:
    """The sweep's play under a name, of a mixture with numbers; nothing where no trial reads it."""
    paths = sources_of(plan.data)[0]
    return roles_of(name, paths) if set(paths) <= set(data_sets(plan)) else {}


def _any_node(config: SweepJobConfig, plan: SweepFile, out: Path) -> bool:
    """Whether a trial can reach what it reads and writes from every node."""
    if config.trials_on != "auto":
        return config.trials_on == "any"
    remote = all(storage.is_remote(path) for path in (config.store, out, *data_sets(plan)))
    return remote and not is_local(tracking.tracking_uri())


def _fleets(context: SweepContext, resources: Mapping[str, float], at_once: int) -> int:
    """Number of processes that evaluate a trial: its share of the CPUs, and of the GPUs if fleets use any."""
    fleets = int(resources.get("CPU", 1)) // at_once
    gpus = max(trial.gpus_per_fleet for trial in context.trials.values())
    return max(1, min(fleets, int(resources.get("GPU", 0) / gpus / at_once)) if gpus else fleets)


class _Watch:
    """Called with the ledger every few seconds; keeps the clock, the page and MLflow's parent run up to date."""

    def __init__(self, config: SweepJobConfig, plan: SweepFile, run: JobRun) -> None:
        self._plan, self._run = plan, run
        self._config, self._name, self._url = config, config.sweep.stem, dashboard_url()
        self._began = time.monotonic()
        self._before = runs.read_json(run.path / "manifest.json").get("seconds", 0.0)
        self._drawn_at, self._num_done = 0.0, -1

    def seconds(self) -> float:
        """Wall-clock time of this sweep, s, including earlier runs of the same command."""
        return self._before + time.monotonic() - self._began

    def __call__(self, rows: Sequence[TrialRow]) -> None:
        self._run.annotate(seconds=self.seconds())
        states = Counter(row.state for row in rows)
        for state in get_args(State):
            gauges.show("tap_trials", states[state], run=str(self._run.path), state=state)
        num_done = sum(row.result is not None for row in rows)
        if num_done != self._num_done:
            self._num_done = num_done
            top = max((point.mean(self._plan.metric) for point in points(rows)), default=None)
            scores = {
                "sweep/trials_evaluated": num_done,
                **({f"sweep/best_{self._plan.metric}": top} if top is not None else {}),
            }
            self._run.tracked.log(scores, step=num_done)
            write_results(self._config, self._plan, self._run, rows)
        if time.monotonic() - self._drawn_at > PAGE_S:
            sweep_page.write(self._run.path, rows, self.frame(self._url), running=True)
            self._drawn_at = time.monotonic()

    def frame(self, dashboard: str) -> sweep_page.Frame:
        """What the page shows besides the trials."""
        manifest = runs.read_json(self._run.path / "manifest.json")
        sources = {
            **{name: str(path) for name, path in _play(self._plan, "play").items()},
            "demonstrations": str(self._plan.demos),
            "MLflow": f"{without_credentials(self._run.tracked.uri)} run {self._run.tracked.run_id}",
            "TensorBoard": f"tensorboard --logdir {self._run.path / TUNE}",
            **{name: manifest[name] for name in ("cost", "registered") if name in manifest},
        }
        return sweep_page.Frame(
            title=f"Sweep {self._name}",
            plan=asdict(self._plan),
            metric=self._plan.metric,
            validation=self._plan.asha.metric if self._plan.asha else "",
            dashboard=dashboard,
            sources=sources,
        )


def _register(top: TrialRow, plan: SweepFile, context: SweepContext, tracked: tracking.Run) -> str:
    """Register the best policy with its lineage and its success rate; prints the version."""
    policy, evaluation = storage.to_path(top.runs["align"]), storage.to_path(top.runs["evaluate"])
    play = roles_of("play", list(play_used([context.trials[top.id]])))
    hashes = {**{name: runs.hash_of(path) for name, path in play.items()}, "demos": runs.hash_of(plan.demos)}
    hashes |= {stage: runs.hash_of(path) for stage, path in top.runs.items()}
    row = {"trial": top.values, "result": top.result, "protocol": context.protocol.to_json()}
    tags = {**hashes, "protocol": context.protocol.hash, "sweep": context.folder.name}
    tags |= {name: f"{value:.6g}" for name, value in (top.result or {}).items() if isinstance(value, float)}
    lineage = " -> ".join(f"{stage} {hashes[stage][:10]}" for stage in (*play, *top.runs))
    version = registry.register(
        policy,
        tracked,
        metadata={"lineage": hashes, "runs": top.runs, **row, "results": runs.read_json(evaluation / "results.json")},
        tags=tags,
        description=f"{label(top.values)}: {lineage}\n\n```\n{text_table([top])}\n```",
    )
    alias = f"best-{context.protocol.hash[:8]}"
    best_so_far = registry.promote(version, alias, score=plan.metric, uri=tracked.uri)
    tracked.tag({"tap_ray.registered": f"{registry.MODEL}/{version}"})
    more = f" (also @{alias}: the best on this protocol so far)" if best_so_far else ""
    return f"trial {top.id}, {label(top.values)}, is {registry.SCHEME}{registry.MODEL}/{version}{more}"
