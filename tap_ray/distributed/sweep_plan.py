"""A sweep as data: a YAML file of values and four verbs -> the trials it stands for, checked before anything starts.

    align:
      train: {steps: 1000, lr: {loguniform: [3e-4, 5e-3]}}      # drawn, `samples` times
      windows: {horizon: {choice: [2, 4, 8]}}                    # likewise
    budget: {grid: [0, 400, 1500]}                               # every value

Below `pretrain`, `prior`, `align` and `evaluate` stand the fields of the configs that these jobs take.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Mapping

from tap_ray.compare.sweep_tables import label
from tap_ray.config import from_dict, load
from tap_ray.dataset.motions import MotionWindows
from tap_ray.dataset.reader import DatasetInfo, open_dataset
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed.settings import AlignJobConfig, PretrainConfig, PriorJobConfig
from tap_ray.distributed.sweep_axes import Axis, axes_of, draw, verb_of
from tap_ray.errors import ConfigError
from tap_ray.evaluate.settings import EvaluateConfig

SECTIONS: Mapping[str, type] = {
    "pretrain": PretrainConfig,
    "prior": PriorJobConfig,
    "align": AlignJobConfig,
    "evaluate": EvaluateConfig,
}
OURS = {
    "pretrain": ("data", "live_play", "play", "out"),
    "prior": ("data", "out"),
    "align": ("demos", "init", "prior", "out"),
    "evaluate": ("policy", "name", "out", "ray_address", "fleets"),
}
"""What a sweep fills in by itself."""
STAGE_1_STEPS = "pretrain.train.steps"


@dataclass(frozen=True, kw_only=True)
class AshaConfig:
    """Asynchronous successive halving on the alignment's own validation; only finalists are judged in closed loop."""

    metric: str = "bc/r2_mean"
    """A metric of held-out demonstrations."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better."""
    grace_steps: int = 250
    """Steps before a trial may be stopped."""
    reduction: float = 3.0
    """One trial in so many goes on from each rung to the next; a rung has so many times the steps of the one before."""
    finalists: int = 3
    """Trials that are judged in closed loop."""

    def __post_init__(self) -> None:
        if self.grace_steps < 1 or self.reduction <= 1 or self.finalists < 1:
            raise ConfigError(
                "grace_steps and finalists are at least 1, reduction is more than 1; got "
                f"{self.grace_steps}, {self.finalists} and {self.reduction:g}."
            )


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """What a file of tune_configs/ holds."""

    data: Path = Path("data/play")
    """Data set of play for Stage 1."""
    demos: Path = Path("data/demos")
    """Data set of demonstrations for Stage 2."""
    budget: Any = 0
    """Stage 1 episodes, the first of the data set, so that budgets are nested; 0: no Stage 1 (behaviour cloning)."""
    seed: Any = 0
    """Of Stage 2. Stage 1's is pretrain.train.seed, and one for all unless it is swept too."""
    metric: Literal["avg_all", "avg_entire", "avg_partial"] = "avg_all"
    """What the trials are ranked by: mean over tasks in closed loop, of partial and entire success or of one."""
    samples: int = 1
    """Draws of choice, uniform and loguniform, each with every point of the grid."""
    sweep_seed: int = 0
    """Of those draws."""
    pretrain: Any = field(default_factory=dict)
    """Fields of jobs.pretrain."""
    prior: Any = None
    """Fields of jobs.pretrain motion-prior, whose result becomes each policy's head; absent: no prior."""
    align: Any = field(default_factory=dict)
    """Fields of jobs.align."""
    evaluate: Any = field(default_factory=dict)
    """Fields of jobs.evaluate; values only, so that all trials are judged alike."""
    asha: AshaConfig | None = None
    """Stops trials early; absent: every trial is trained to its end and judged."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a sweep: the configs of its stages, but for the folders that only running them makes known."""

    id: str
    """Its number, e.g. "007"."""
    values: Mapping[str, Any]
    """By axis."""
    pretrain: PretrainConfig | None
    """None: from scratch."""
    prior: PriorJobConfig | None
    align: AlignJobConfig
    evaluate: EvaluateConfig

    @property
    def label(self) -> str:
        """For a person: "budget 400, seed 1"."""
        return label(self.values)


def read(path: Path, *, data: Path | None = None, demos: Path | None = None) -> SweepFile:
    """A sweep from its file; `data` and `demos` win over those named there.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), or a verb has no options.
    """
    plan = load(SweepFile, path)
    plan = replace(plan, data=(data or plan.data).resolve(), demos=(demos or plan.demos).resolve())
    for name in SECTIONS:
        section = getattr(plan, name)
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise ConfigError(f"{path}: {name}: expected keys and values, got {section!r}.")
        for key in OURS[name]:
            if key in section:
                raise ConfigError(
                    f"{path}: {name}: {key} is filled in by the sweep. Remove it; data, demos, "
                    "budget and seed stand at the top."
                )
    if any(True for _ in axes_of(EvaluateConfig, plan.evaluate, "evaluate", path)):
        raise ConfigError(f"{path}: evaluate takes values only: trials judged differently cannot be compared.")
    found = axes(plan, path)
    drawn = [axis for axis in found if axis.verb != "grid"]
    if plan.samples < 1 or (plan.samples > 1 and not drawn):
        raise ConfigError(
            f"{path}: samples is {plan.samples}, and {len(drawn)} of the {len(found)} axes are drawn (choice, uniform, "
            "loguniform). It must be at least 1, and 1 where nothing is drawn."
        )
    return plan


def axes(plan: SweepFile, where: Path | str = "sweep") -> list[Axis]:
    """Everything that is varied: the budget, the sections in the order of the fields of `SweepFile`, the seed."""

    def own(name: str) -> list[Axis]:
        verb = verb_of(getattr(plan, name), name, where)
        return [Axis(name=name, verb=verb[0], values=verb[1])] if verb else []

    below = [axis for name, cls in SECTIONS.items() for axis in axes_of(cls, getattr(plan, name) or {}, name, where)]
    return [*own("budget"), *below, *own("seed")]


def trials(plan: SweepFile, where: Path | str = "sweep") -> list[Trial]:
    """Every trial of a sweep, each once: what a scratch policy would have got from another Stage 1 is no second trial.

    Raises:
        ConfigError: a field that does not exist or has the wrong type, or a budget that the data set does not have.
    """
    data, demos = open_dataset(plan.data), open_dataset(plan.demos)
    made, seen = [], set()
    for values in points(plan, where):
        budget, seed = (_whole(values.get(name, getattr(plan, name)), name, where) for name in ("budget", "seed"))
        scratch = budget == 0 or values.get(STAGE_1_STEPS) == 0
        known = {axis: value for axis, value in values.items() if not (scratch and _of_stage_1(axis))}
        if repr(known) in seen:
            continue
        seen.add(repr(known))
        shown = {axis: 0 if axis in ("budget", STAGE_1_STEPS) and scratch else known.get(axis, "-") for axis in values}
        trial = _trial(plan, f"{len(made):03d}", shown, values, None if scratch else budget, seed, where)
        _require_episodes(trial, data, demos, where)
        _require_validation(plan, trial, where)
        made.append(_fit_to(trial, demos))
    return made


def _of_stage_1(axis: str) -> bool:
    return axis == "budget" or axis.startswith("pretrain.")


def points(plan: SweepFile, where: Path | str = "sweep") -> list[dict[str, Any]]:
    """Values by axis: for each draw, every point of the grid. A draw's value follows from its number and its axis."""
    found = axes(plan, where)
    grids = [axis for axis in found if axis.verb == "grid"]
    made = []
    for number in range(plan.samples):
        drawn = {axis.name: draw(axis, plan.sweep_seed, number) for axis in found if axis.verb != "grid"}
        for point in itertools.product(*(axis.values for axis in grids)):
            values = drawn | dict(zip((axis.name for axis in grids), point, strict=True))
            made.append({axis.name: values[axis.name] for axis in found})
    return made


def _whole(value: Any, name: str, where: Path | str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where}: {name}: expected a whole number of at least 0, got {value!r}.")
    return value


def _trial(
    plan: SweepFile,
    id: str,
    shown: Mapping[str, Any],
    values: Mapping[str, Any],
    budget: int | None,
    seed: int,
    where: Path | str,
) -> Trial:
    sections = {name: _filled(getattr(plan, name) or {}, name, values) for name in SECTIONS}
    place = {name: f"{where}: {name}" for name in SECTIONS}
    pretrain = prior = None
    if budget:
        config = from_dict(PretrainConfig, sections["pretrain"] | {"data": plan.data}, where=place["pretrain"])
        pretrain = replace(config, windows=replace(config.windows, num_episodes=budget))
    else:
        from_dict(PretrainConfig, _without(sections["pretrain"]), where=place["pretrain"])
    if plan.prior is not None:
        prior = from_dict(PriorJobConfig, sections["prior"] | {"data": [str(plan.data)]}, where=place["prior"])
    align = from_dict(
        AlignJobConfig, sections["align"] | {"demos": plan.demos, "init": "scratch"}, where=place["align"]
    )
    align = replace(align, train=replace(align.train, seed=seed))
    evaluate = from_dict(EvaluateConfig, sections["evaluate"] | {"policy": "-"}, where=place["evaluate"])
    return Trial(id=id, values=shown, pretrain=pretrain, prior=prior, align=align, evaluate=evaluate)


def _without(section: Mapping[str, Any]) -> dict[str, Any]:
    """A pretrain section whose steps may be 0."""
    train = {key: value for key, value in section.get("train", {}).items() if key != "steps"}
    return {**section, "train": train}


def _filled(section: Mapping[str, Any], prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section with the trial's value in the place of each verb."""
    made = {}
    for key, value in section.items():
        name = f"{prefix}.{key}"
        inner = _filled(value, name, values) if isinstance(value, Mapping) else value
        made[key] = values.get(name, inner)
    return made


def _require_episodes(trial: Trial, data: DatasetInfo, demos: DatasetInfo, where: Path | str) -> None:
    """Raise unless each data set has as many episodes as are asked for, and one to judge on among them."""
    asked: list[tuple[str, WindowConfig | MotionWindows, DatasetInfo]] = [
        ("align.windows.num_episodes", trial.align.windows, demos)
    ]
    if trial.pretrain:
        asked.append(("budget", trial.pretrain.windows, data))
    if trial.prior and trial.prior.windows.num_episodes:
        asked.append(("prior.windows.num_episodes", trial.prior.windows, data))
    for name, windows, dataset in asked:
        num = windows.num_episodes
        if num > len(dataset):
            raise ConfigError(
                f"{where}: {name} {num} is larger than the data set: {dataset.path} has {len(dataset)} episodes. "
                "Collect more (the same command with more --episodes), or ask for fewer."
            )
        if windows.holdout_every and (num or len(dataset)) < windows.holdout_every:
            raise ConfigError(
                f"{where}: {name} {num} leaves no episode to judge on: every {windows.holdout_every}-th is "
                "held out. Ask for more, or set windows.holdout_every lower."
            )


def _require_validation(plan: SweepFile, trial: Trial, where: Path | str) -> None:
    """Raise unless successive halving sees each trial judged before it may stop it."""
    if plan.asha is None:
        return
    every, grace = trial.align.train.validate_every, plan.asha.grace_steps
    if not trial.align.windows.holdout_every or not 1 <= every <= grace:
        raise ConfigError(
            f"{where}: asha looks at held-out demonstrations from step {grace} on (asha.grace_steps); got "
            f"align.train.validate_every {every} and align.windows.holdout_every {trial.align.windows.holdout_every}. "
            f"Validate every 1 to {grace} steps, and hold some episodes out."
        )


def _fit_to(trial: Trial, demos: DatasetInfo) -> Trial:
    """Judged on the demonstrations' robot and image size."""
    robot, size = demos.spec.robot, demos.header.image_size[0]
    return replace(trial, evaluate=replace(trial.evaluate, robot=robot, image_size=size))
