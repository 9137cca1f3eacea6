"""The options of the jobs that train, and of `python -m jobs.pipeline`."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Sequence

from tyro.conf import arg

from tap_ray import storage
from tap_ray.align.demos import AlignConfig
from tap_ray.config import ONCE_ONE, ClusterConfig, NodesConfig, require_used, to_dict
from tap_ray.dataset.action_chunks import ActionChunkConfig
from tap_ray.dataset.windows import WindowConfig
from tap_ray.errors import ConfigError
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.policy import PolicyConfig, plain
from tap_ray.play.explorers import explorer_values
from tap_ray.play.settings import PlayJobConfig
from tap_ray.pretrain.from_play import ObjectiveConfig, stage_windows
from tap_ray.runs import MadeBy
from tap_ray.specs import ONE_CAMERA
from tap_ray.training.loop import TrainConfig

SCRATCH = "scratch"
"""Value of --init of jobs.align that trains without Stage 1."""
LIVE_GROUP = 16
"""Largest group of live play, episodes: the trainer waits for the first group until it has been collected."""


FOLLOWS = {
    "windows.batch_size": "--batch-size",
    "windows.crops": "the objective",
    "windows.chunk_states": "--prior",
    "windows.history": "--history",
    "windows.k_max": "the objective: only inverse dynamics has a second image",
    "windows.segment": "the objective: only inverse dynamics has pairs of images",
    "windows.reach_steps": "the objective, or --align.weights.reach",
    "windows.horizon": "the motion prior's chunk, or for inverse dynamics alone --windows.k-max",
    "windows.group_size": "--live-play",
    "windows.num_episodes": "--live-play, which is endless: --play.episodes are held out",
    "windows.holdout_every": "--live-play: --play.episodes are held out",
    "policy.chunk": "--windows.horizon",
    "policy.context": "the stage",
    "policy.head": "--prior",
    "policy.prior": "--prior",
    "policy.history": "--history",
    "policy.image_size": "the dataset's images",
    "policy.num_cameras": "the dataset's robot",
    "policy.num_actions": "the dataset's robot",
    "policy.num_motion_states": "the dataset's robot",
    "policy.num_state": "the dataset's robot (0: none, 1: all)",
    "policy.num_reach": "the objective",
    "prior.num_actions": "the unified layout of all robots",
    "prior.num_states": "the unified layout of all robots",
}
"""Field -> what decides its value, for values that cannot be chosen; see `config.require_used`."""


def sources_of(data: Sequence[str], flag: str = "--data") -> tuple[list[Path], list[float]]:
    """Absolute paths and weights of datasets given as PATH or PATH:WEIGHT with a flag.

    Raises:
        ConfigError: a weight is not a number above 0.
    """
    paths, weights = [], []
    for text in data:
        path, weight = _split(text)
        try:
            share = float(weight)
        except ValueError:
            raise ConfigError(
                f"{flag} must be PATH or PATH:WEIGHT; got {text!r}, where the weight {weight!r} of the path {path!r} "
                "is not a number."
            ) from None
        if not (math.isfinite(share) and share > 0):
            raise ConfigError(f"{flag} {text}: the weight of {path} must be more than 0 and finite; got {weight}.")
        weights.append(share)
        paths.append(storage.to_path(path).resolve())
    return paths, weights


def absolute(data: Sequence[str]) -> tuple[str, ...]:
    """The same datasets with absolute paths; the share of one alone is everything, and is left out."""
    paths, weights = sources_of(data)
    if len(paths) == 1:
        return (str(paths[0]),)
    return tuple(f"{path}:{weight}" for path, weight in zip(paths, weights, strict=True))


def roles_of(role: str, paths: Sequence[Path]) -> dict[str, Path]:
    """Role -> dataset as a parent of a run: the role alone, or of a mixture <role>_0, <role>_1, ..."""
    return {role: paths[0]} if len(paths) == 1 else {f"{role}_{number}": path for number, path in enumerate(paths)}


def identity_of(data: Sequence[str]) -> str | list[float] | None:
    """A mixture's weights in a run's identity; what lies at the paths enters by the parents' hashes. Of one dataset its
    path, and None without any, as when there could be one only."""
    if len(data) > 1:
        return sources_of(data)[1]
    return str(storage.to_path(_split(data[0])[0])) if data else None


def _split(text: str) -> tuple[str, str]:
    """Split into path and weight; a colon in a URI or in the name of an existing folder is part of the path."""
    path, colon, weight = text.rpartition(":")
    named = "://" not in text and (storage.to_path(text) / "meta").exists()
    return (path, weight) if colon and not weight.startswith("//") and not named else (text, "1")


@dataclass(frozen=True, kw_only=True)
class WorkersConfig(NodesConfig):
    """How training is distributed. Beyond float error only `num_workers` changes the result, and `min_workers` where
    machines are lost."""

    num_workers: int = 1
    """Number of training processes; each processes `batch_size` windows of its own per step. On CPUs at most one per
    core."""
    min_workers: int = 0
    """Smallest number of training processes: training continues with fewer than `num_workers` while the cluster lacks
    room. A step then has fewer windows, and each window is still seen once an epoch. 0: wait for room for all."""
    threads: int = 1
    """Threads of torch in each training process. On CPUs, one process per core with one thread each was fastest."""
    num_data_workers: int = 1
    """Processes that decode data for each training process; of a mixture of datasets, as many for each of them."""
    stream_memory_mb: int = 512
    """Largest size of the decoded windows that are buffered for each training process, MB."""
    max_failures: int = 3
    """How often in a row, without a new checkpoint in between, failed training processes are restarted; -1 means
    always."""
    async_checkpoints: bool = False
    """Whether training continues while a checkpoint is written or uploaded. Needs memory on the first process's machine
    for another copy of the weights, their average and AdamW's state (with --parallel fsdp, of each process's shards on
    its own machine). A run that is killed meanwhile resumes from the checkpoint before."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """"ddp": each training process holds the whole model; "fsdp": each holds a shard of it and of AdamW's state, for
    models that are too large for one GPU. Each can resume from the other's checkpoints."""
    compile: bool = False
    """Whether to compile the network (torch.compile) when training starts: it takes minutes and makes steps faster.
    Needs a C++ compiler on each machine; results differ within float error."""
    deterministic: bool = False
    """Whether the training processes use only operations that give the same bits each time
    (torch.use_deterministic_algorithms); an operation that has none such on a GPU ends the training, by name. CPUs need
    it not."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Whether to train on GPUs; "auto": if there are enough now; "on": wait until an autoscaler adds them."""
    gpus: float = 1.0
    """GPUs, or a share of one, for each training process that uses them."""

    @property
    def least(self) -> int:
        """Processes without which there is no training."""
        return self.min_workers or self.num_workers

    def stream(self) -> dict[str, Any]:
        """The part that `stream.batches` takes."""
        return {"num_data_workers": self.num_data_workers, "memory_mb": self.stream_memory_mb}


@dataclass(frozen=True, kw_only=True)
class TrainJobConfig:
    """Settings that all jobs that train have in common."""

    train: Annotated[TrainConfig, arg(name="")] = field(default_factory=TrainConfig)
    workers: Annotated[WorkersConfig, arg(name="")] = field(default_factory=WorkersConfig)
    out: Path | None = None
    """Run folder; without it runs/<verb>-<hash>."""


@dataclass(frozen=True, kw_only=True)
class StageConfig(TrainJobConfig):
    """Settings that the jobs that train a policy have in common."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    """Training windows; their batch size is `--batch-size`."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def resolve_windows(self) -> WindowConfig:
        """Windows in batches of the trainer's size."""
        return replace(self.windows, batch_size=self.train.batch_size)

    def require_used(self, windows: WindowConfig, policy: Any) -> None:
        """Raise ConfigError where a chosen value has no effect on the windows or on the policy's config.

        Says which horizon stands for the default one where another is used.
        """
        require_used(self.windows, windows, of="windows", follows=FOLLOWS)
        require_used(self.policy, policy, of="policy", follows=FOLLOWS)
        if windows.horizon != self.windows.horizon:
            print(f"--windows.horizon is {windows.horizon}: the value is determined by {FOLLOWS['windows.horizon']}.")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(StageConfig):
    """Settings of jobs.pretrain: the play, the objectives, and the number of processes."""

    data: tuple[str, ...] = field(default=(), metadata=ONCE_ONE)
    """Datasets of play of one robot: PATH, or PATH:WEIGHT for its share of each batch (default 1); not with
    --live-play."""
    live_play: bool = False
    """Train on an unlimited stream of new play directly from the robots; only the held-out episodes are stored."""
    play: PlayJobConfig = field(default_factory=lambda: PlayJobConfig(episodes=64))
    """How play is collected with --live-play; `episodes` of it are held out for statistics and validation."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The objectives of Stage 1 and their weights."""

    def resolve_windows(self) -> WindowConfig:
        """Windows in batches of the trainer's size, with what the objective asks for."""
        windows = stage_windows(super().resolve_windows(), self.objective, self.policy)
        if not self.live_play:
            return windows
        usual = {name: getattr(WindowConfig(), name) for name in ("num_episodes", "holdout_every")}  # of a dataset
        return replace(windows, group_size=min(windows.group_size, LIVE_GROUP), **usual)

    def sources(self) -> tuple[list[Path], list[float]]:
        """Absolute paths of the datasets, and their weights; none with live play. ConfigError: see `sources_of`."""
        return sources_of(self.data)

    def parents(self) -> dict[str, Path]:
        """Role -> dataset: "data", or of a mixture "data_0", "data_1", ..."""
        return roles_of("data", self.sources()[0])


@dataclass(frozen=True, kw_only=True)
class PriorJobConfig(TrainJobConfig):
    """Settings of jobs.pretrain_prior: the datasets, and the number of processes."""

    data: tuple[str, ...]
    """Datasets of play, one per robot: PATH, or PATH:WEIGHT for its share of each batch (default 1)."""
    train: Annotated[TrainConfig, arg(name="")] = field(
        default_factory=lambda: TrainConfig(steps=5000, batch_size=256, lr=1e-3)
    )
    windows: ActionChunkConfig = field(default_factory=ActionChunkConfig)
    """Chunks to train on; their batch size is `--batch-size`, their horizon the prior's chunk."""
    prior: PriorConfig = field(default_factory=PriorConfig)

    def resolve_windows(self) -> ActionChunkConfig:
        """Windows as long as the prior's chunk, in batches of the trainer's size."""
        return replace(self.windows, batch_size=self.train.batch_size, horizon=self.prior.chunk)

    def sources(self) -> tuple[list[Path], list[float]]:
        """Absolute paths of the datasets, and their weights.

        Raises:
            ConfigError: there is no dataset, or a weight is not a number.
        """
        if not self.data:
            raise ConfigError("A motion prior needs datasets of play (--data PATH [PATH ...]).")
        return sources_of(self.data)

    def parents(self) -> dict[str, Path]:
        """Role -> dataset: "play_0", "play_1", ..."""
        return {f"play_{number}": path for number, path in enumerate(self.sources()[0])}


@dataclass(frozen=True, kw_only=True)
class AlignJobConfig(StageConfig):
    """Settings of jobs.align: the demonstrations, the initial weights, and the number of processes."""

    demos: Path
    """Dataset of demonstrations."""
    init: str
    """Run folder of Stage 1 (jobs.pretrain); or "scratch", the baseline."""
    prior: Path | None = None
    """Run folder of a motion prior (jobs.pretrain_prior): its decoder becomes the head, its chunk
    the horizon."""
    play: tuple[str, ...] = field(default=(), metadata=ONCE_ONE)
    """Datasets of play (with robot masks) that are trained on together with the demonstrations, so that Stage 1 is not
    forgotten: PATH, or PATH:WEIGHT for its share of the windows of play in each batch (default 1)."""
    history: int = 0
    """Past steps that the prior's encoder encodes into one vector, 0 .. the prior's chunk; 0: none."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """What is loaded from Stage 1, and what is trained."""

    def play_sources(self) -> tuple[list[Path], list[float]]:
        """Absolute paths of the datasets of play, and their weights. ConfigError: see `sources_of`."""
        return sources_of(self.play, "--play")

    def play_parents(self) -> dict[str, Path]:
        """Role -> dataset: "play", or of a mixture "play_0", "play_1", ..."""
        return roles_of("play", self.play_sources()[0])

    def play_windows(self) -> WindowConfig:
        """Windows of play that are added to each batch of demonstrations, with all that the objective of Stage 1
        needs."""
        windows = replace(self.windows, batch_size=self.align.play_batch, num_episodes=self.align.play_episodes)
        return ObjectiveConfig().windows(windows)


FROM_SCRATCH = PolicyConfig(glimpse_px=0, num_state=0)
"""The best settings for a policy from scratch; with larger ones it memorizes the few demonstrations
(docs/results/turning.md)."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(ClusterConfig):
    """Sizes of the pipeline's stages."""

    play_episodes: int = 200
    """Episodes of play, each 12 s of robot time."""
    demos_per_task: int = 10
    """Demonstrations of each task."""
    pretrain_steps: int = 250
    """Optimizer steps of Stage 1, 128 windows each."""
    align_steps: int = 200
    """Optimizer steps of Stage 2, 64 windows each, the same for both policies."""
    episodes: int = 12
    """Cells of each task that a policy is evaluated on."""
    num_workers: int = 2
    """Number of training processes; at most one per CPU core. Unlike in the jobs that train, they share the windows of
    each step, so that their number changes the time and not the batch."""
    seed: int = 0
    """Root of the seed tree."""
    out: Path = Path("demo")
    """Folder for all results. The same command resumes where it was interrupted."""

    def training(self, steps: int, *, windows: int) -> TrainConfig:
        """Settings of a training whose steps take `windows` windows, shared among the processes."""
        share = math.ceil(windows / self.num_workers)
        return TrainConfig(steps=steps, batch_size=share, seed=self.seed, checkpoint_every=100, validate_every=100)


UNUSED_PLAY = PlayJobConfig(episodes=64, explorer="mixed")
"""What stands for live play in the identity of a run without it, whatever the defaults are now: older runs keep their
names."""


def made_by(config: TrainJobConfig) -> MadeBy:
    """Split a config into the part that determines the results of a run and the runtime part."""
    values, former, episodes = to_dict(config), {}, {}
    if config.train.gradient_accumulation_steps == 1:  # older runs, without accumulation, keep their names
        del values["train"]["gradient_accumulation_steps"]
    if isinstance(config, StageConfig):
        values["policy"] = plain(config.policy)
    if isinstance(config, PriorJobConfig):  # the contents of the paths enter by the parents' hashes
        former = {"data": values["data"]}
        values |= {"data": config.sources()[1]}
    if isinstance(config, PretrainConfig):
        play = config.play if config.live_play else UNUSED_PLAY
        values["play"] = {**to_dict(play), "explorers": explorer_values(play.explorer, play.explorers)}
        for name in ("writers", "gpus_per_fleet"):  # whatever they are, the data are the same
            values["play"].pop(name)
        values["data"] = identity_of(config.data)
        if play.cameras == ONE_CAMERA:  # runs from before there could be several keep their names
            values["play"].pop("cameras")
    if isinstance(config, PretrainConfig | PriorJobConfig):  # not demonstrations, whose new tasks would bring new words
        episodes = dict.fromkeys(config.parents(), config.windows.num_episodes)
    if isinstance(config, AlignJobConfig):
        values["play"] = identity_of(config.play)
        episodes = dict.fromkeys(config.play_parents(), config.align.play_episodes)
    identity = {**values, "workers": config.workers.num_workers}
    return MadeBy(identity=identity, runtime={"workers": values["workers"]}, former=former, episodes=episodes)
