"""`training.session` under Ray Train: W workers average their gradients (DDP or FSDP) and resume when one of them dies.

    driver   train(job) -----> TorchTrainer ----> worker 0 .. W-1   each: session.work(job, context)
      |                                              |
      '-- follow: bar, MLflow <---- metrics.jsonl <--'  (and checkpoints/, by worker 0; of FSDP by all)

Checkpoints are folders in the run folder and are not reported to Ray, for three reasons. A process without Ray writes
and reads the same ones. The newest complete folder alone says where a run resumes; Ray's own record would be a second
source, and a kill between the two writes would make them differ. And `ray.train.report` waits for the controller's next
poll, which takes seconds, longer than a small checkpoint. When a worker dies, Ray stops all workers and starts new
ones, which resume from the newest folder, as the same command does after the driver was killed. A machine that
announces its preemption gets an extra checkpoint. Only failures without a new checkpoint between them end the job.
"""

import contextlib
import dataclasses
import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Callable, Mapping

import ray
import ray.train
import ray.train.torch
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from torch import nn
from tqdm import tqdm

from tap_ray import storage
from tap_ray.distributed import gauges, placement
from tap_ray.distributed.connect import connect
from tap_ray.distributed.failures import Controller, FailuresInARow, StopOnUserError, user_error
from tap_ray.distributed.ray_internals.train import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
    DatasetsCallback,
    PlacementGroupCleanerCallback,
    get_env_vars_to_propagate,
    get_train_context,
)
from tap_ray.errors import ConfigError, TapRayError
from tap_ray.job import job_run
from tap_ray.media.text_table import columns
from tap_ray.settings import TrainJobConfig, WorkersConfig, made_by
from tap_ray.training import session
from tap_ray.training.compiling import compile_layers
from tap_ray.training.loop import TrainConfig
from tap_ray.training.progress import Log, every, follow
from tap_ray.training.session import Batches, Trainable, TrainJob, WorkerContext
from tap_ray.training.sharding import shard

SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay where the job was started, so that relative paths mean the same
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every line twice
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # a spot machine lives for 30 s to two minutes from its notice on
    "RAY_TRAIN_METRICS_ENABLED": "0",  # Prometheus; ours are in metrics.jsonl
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead worker is noticed after this long instead of 2 s
}
"""Ray Train's environment, unless the user has set it."""
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray Train's switch for a process that watches for preempted machines; on if the cluster has several machines."""
USERS_WATCHER = os.environ.get(WATCHER)
REPORT_EVERY_S = 30.0
"""How often a training prints what it waits for, s."""


def run_stage(
    name: str,
    config: TrainJobConfig,
    *,
    build: Callable[[], Trainable],
    batches: Batches,
    parents: Mapping[str, Path],
    metadata: Mapping[str, Any],
) -> Path:
    """Run a training job from start to end: run folder, MLflow run, Ray, training, the table of held-out metrics.

    Args:
        name: name of the job, e.g. "align".
        config: the job's config. build, batches, metadata: see `session.TrainJob`.
        parents: role -> dataset or run that this run is made from.

    Returns:
        The run folder. A run that had finished is left as it is.
    """
    validate_settings(config.train, config.workers)
    with job_run(name, config, made_by=made_by(config), parents=parents) as run:
        if not run.done:
            job = TrainJob(
                run=run.path.resolve(),
                build=build,
                batches=batches,
                metadata=metadata,
                config=config.train,
                threads=config.workers.threads,
                async_checkpoints=config.workers.async_checkpoints,
            )
            with connect(config.workers.ray_address):
                run.metadata["metrics"] = train(job, config.workers, log=run.log)
    print(table(session.final_metrics(run.path)))
    return run.path


def table(metrics: Mapping[str, float]) -> str:
    """Text: the last value of each metric, one per line."""
    return "\n".join(columns([(name, f"{metrics[name]:.4g}") for name in sorted(metrics) if name != "step"]))


def train(job: TrainJob, config: WorkersConfig, *, log: Log | None = None, progress: bool = True) -> dict[str, float]:
    """Train on workers of the connected Ray, from the newest checkpoint on.

    Args:
        job: the training and its run folder.
        config: the number of workers and their resources.
        log: called in the driver with each line of metrics and its step (for MLflow).
        progress: whether to draw a bar.

    Returns:
        The last value of every metric.

    Raises:
        ConfigError: the settings are invalid; nothing has been started.
        TapRayError: a worker raised it, or workers kept dying.
        SystemExit: Ray Train's controller died, e.g. because it was killed.
    """
    validate_settings(job.config, config)
    job = dataclasses.replace(job, run=job.run.resolve(), deterministic=config.deterministic)
    with session.lock(job.run):  # a run folder that is in use is reported now, not by a worker
        pass
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ[WATCHER] = USERS_WATCHER or str(int(len(ray.nodes()) > 1 or placement.grows()))
    trainer = _Trainer(
        job.run / session.CHECKPOINTS,
        _worker,
        # As bytes, so that Ray's controller need not import what only the workers need: seconds, on few cores.
        train_loop_config={
            "job": cloudpickle.dumps(job),  # pyright: ignore[reportPrivateImportUsage]
            "parallel": config.parallel,
            "compile": config.compile,
        },
        scaling_config=_scaling(config),
        run_config=RunConfig(
            name="ray",
            **notes_at(job.run),
            failure_config=FailureConfig(max_failures=config.max_failures),
            callbacks=[StopOnUserError()],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with follow(job, partial(_publish, str(job.run), log), progress=progress), every(REPORT_EVERY_S, report_waiting):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _explain(error, job) from error
        except RayActorError as error:
            # The controller ended, e.g. because a trial was stopped: that is not a failure of the training.
            raise SystemExit(f"Training stopped: Ray Train's controller was lost.\n{_resume_hint(job)}") from error
    return session.final_metrics(job.run)


def report_waiting() -> None:
    """Print the resources that the training waits for, if it does."""
    with contextlib.suppress(Exception):  # a message for the user, from a thread, must not end the job
        if text := placement.waiting_groups():
            tqdm.write(text)


def notes_at(run: Path) -> dict[str, Any]:
    """Ray Train's and Tune's storage path for their own records of a run, as they expect it."""
    if not storage.is_remote(run):
        return {"storage_path": str(run)}
    remote: Any = run
    return {"storage_path": remote.path, "storage_filesystem": PyFileSystem(FSSpecHandler(remote.fs))}


def validate_settings(config: TrainConfig, workers: WorkersConfig) -> None:
    """Raise a ConfigError for invalid numbers."""
    if workers.num_workers < 1:
        raise ConfigError(f"Training needs at least 1 worker; got --num-workers {workers.num_workers}.")
    if workers.min_workers > workers.num_workers:
        raise ConfigError(
            f"--min-workers must be at most --num-workers; got {workers.min_workers} and {workers.num_workers}."
        )
    if not workers.gpus >= 0 or (workers.gpus > 1 and workers.gpus % 1):
        raise ConfigError(f"--gpus must be 0, a fraction of one GPU, or a whole number of GPUs; got {workers.gpus:g}.")
    if workers.num_data_workers < 1 or workers.threads < 1:
        raise ConfigError(
            f"--num-data-workers and --threads must be at least 1; got {workers.num_data_workers} and "
            f"{workers.threads}."
        )
    cpus = _num_cpus(workers.ray_address)
    if cpus and workers.least > cpus and not (ray.is_initialized() and placement.grows()):
        raise ConfigError(
            f"--{'min' if workers.min_workers else 'num'}-workers {workers.least}: there are {cpus} CPUs, and each "
            "training process needs one."
        )


def _num_cpus(ray_address: str | None) -> int | None:
    """Number of CPUs of the connected Ray, or of the local Ray that would be started; None before a cluster is
    joined."""
    if ray.is_initialized():
        return int(ray.cluster_resources().get("CPU", 0))
    return None if ray_address or os.environ.get("RAY_ADDRESS") else os.cpu_count()


def uses_gpus(config: WorkersConfig, labels: Mapping[str, str]) -> bool:
    """Whether trainers compute on GPUs of the connected cluster's nodes with these labels. ConfigError: they must, and
    there are too few."""
    if config.gpu == "off" or not config.gpus:
        return False
    if config.gpu == "auto":
        return placement.fits_gpus(config.gpus, config.least, labels)
    placement.require_gpus(config.gpus, flag="--gpu on --gpus", places=config.least, labels=labels)
    return True


def _scaling(config: WorkersConfig) -> ScalingConfig:
    label_selector = placement.selector(config.node_labels)
    use_gpu = uses_gpus(config, label_selector)
    cpus = placement.share(
        config.num_workers, label_selector, processes=1 + config.num_data_workers
    )  # a trainer that is placed can get its data
    return ScalingConfig(
        num_workers=(config.least, config.num_workers) if config.min_workers else config.num_workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": cpus, **({"GPU": config.gpus} if use_gpu else {})},
        label_selector=label_selector or None,
    )


def _worker(settings: Mapping[str, Any]) -> None:
    """The function that each training process runs."""
    context = ray.train.get_context()
    device = torch.device(ray.train.torch.get_device())  # type: ignore[arg-type]
    sharded = settings["parallel"] == "fsdp" and context.get_world_size() > 1
    worker = WorkerContext(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=device,
        prepare=partial(_prepared, device=device, compiles=settings["compile"], sharded=sharded),
        sharded=sharded,
        leaving=_preempted_nodes,
    )
    # The stream's arrays are read-only views of the object store; nothing changes a batch in place.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    logging.getLogger("ray").setLevel(logging.ERROR)
    session.work(cloudpickle.loads(settings["job"]), worker)


def _prepared(model: nn.Module, *, device: torch.device, compiles: bool, sharded: bool) -> nn.Module:
    """The wrapped model that this worker trains. DDP's buckets hold the gradients, so that they need no memory of their
    own."""
    if compiles:
        compile_layers(model, device)
    if sharded:
        return shard(model, device)
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"gradient_as_bucket_view": True})


def _publish(run: str, log: Log | None, line: Mapping[str, float], step: int) -> None:
    """Pass on a line of metrics, and publish the rate and the share of waiting as Ray metrics."""
    if log is not None:
        log(line, step)
    for ending, name in (("samples_per_s", "tap_samples_per_second"), ("data_wait_pct", "tap_data_wait_percent")):
        for key in [key for key in line if key.endswith(f"/{ending}")]:
            gauges.show(name, line[key], run=run)


def _preempted_nodes() -> list[str]:
    """Ids of the training's nodes that will be preempted, as far as this worker knows; `ray.train.get_preemption_info`
    would wait for Ray's controller."""
    notice = get_train_context().preemption_context.preemption_info
    return notice.preempted_node_ids if notice else []


class _Trainer(ray.train.torch.TorchTrainer):
    """Ray Train's trainer without two processes that it starts beside each controller.

    One distributes Ray datasets, and we give it none. The other, which is detached, frees the reservations of a
    controller that crashed: it asks Ray's dashboard, which a local Ray does not have, once per second and logs an error
    each time. Ray frees the reservations of a job when the job ends; a sweep releases those of its trials
    (`placement.release_orphans`).
    """

    def __init__(self, checkpoints: Path, *args: Any, **settings: Any) -> None:
        """`checkpoints` is the run's folder of checkpoints."""
        super().__init__(*args, **settings)
        self._checkpoints = checkpoints

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        """As in Ray Train, but with our controller, and without taking over Ctrl-C from the job (signals.py)."""
        policy = FailuresInARow(self.run_config.failure_config or FailureConfig(), self._checkpoints)
        options = {"num_cpus": 0, "scheduling_strategy": placement.here(), "runtime_env": {"env_vars": _environment()}}
        controller = ray.remote(**options)(Controller).remote(**settings | {"failure_policy": policy})
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in callbacks if not isinstance(callback, needless)]


def _environment() -> dict[str, str]:
    """Variables that Ray Train's controller needs, as Ray Train sets them."""
    quiet = {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE}
    return quiet | get_env_vars_to_propagate()


def _explain(error: ray.train.TrainingFailedError, job: TrainJob) -> BaseException:
    """Convert an error of Ray Train into the error that the user should see."""
    if isinstance(error, ray.train.ControllerError):  # a worker that died while it started is one of these
        cause = error.controller_failure
        if user_error(cause) is None and not isinstance(cause, RayActorError):
            return error
        failures = {0: cause}
    else:
        failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause = user_error(failure)
        if cause is not None:
            return cause
    reasons = "\n".join(
        f"  worker {rank}: {str(failure).strip().splitlines()[-1]}" for rank, failure in failures.items()
    )
    if any(isinstance(failure, OutOfMemoryError) for failure in failures.values()):
        return TapRayError(
            "Out of memory: Ray's memory monitor ended training processes before they reached a new "
            f"checkpoint.\n{reasons}\nLower --batch-size, --num-data-workers or --stream-memory-mb, end other "
            f"programs on the machine, or use one with more memory. {_resume_hint(job)}"
        )
    return TapRayError(
        "Training stopped: workers died too often without a new checkpoint in between (--max-failures).\n"
        f"{reasons}\n{_resume_hint(job)}"
    )


def _resume_hint(job: TrainJob) -> str:
    return f"The same command resumes from the newest checkpoint in {job.run / session.CHECKPOINTS}."
