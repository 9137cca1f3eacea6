"""Makes the plan of a sweep: a YAML file of values and four verbs becomes its trials, checked before anything starts.

    align:
      train: {steps: 1000, lr: {loguniform: [3e-4, 5e-3]}}      # drawn, `samples` times
      windows: {horizon: {choice: [2, 4, 8]}}                    # likewise
    budget: {grid: [0, 400, 1500]}                               # every value

The keys below `pretrain`, `prior`, `align` and `evaluate` are the fields of these jobs' configs.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Mapping, Sequence

from tap_ray import storage
from tap_ray.align.demos import resolve_policy
from tap_ray.config import ONCE_ONE, from_dict, load
from tap_ray.errors import ConfigError, nearest
from tap_ray.evaluate.settings import EvaluateConfig
from tap_ray.settings import AlignJobConfig, PretrainConfig, PriorJobConfig, absolute, sources_of
from tap_ray.sweep.arms import Arm, arms_of, chosen, merged
from tap_ray.sweep.axes import Axis, axes_of, draw, verb_of
from tap_ray.sweep.data import DatasetFacts, dataset_facts
from tap_ray.sweep.tables import ARM, BUDGET, DEMOS, SEED
from tap_ray.sweep.trial import Trial, require_data

SECTIONS: Mapping[str, type] = {
    "pretrain": PretrainConfig,
    "prior": PriorJobConfig,
    "align": AlignJobConfig,
    "evaluate": EvaluateConfig,
}
OURS = {
    "pretrain": ("data", "live_play", "play", "out"),
    "prior": ("data", "out"),
    "align": ("demos", "init", "prior", "play", "out"),
    "evaluate": ("policy", "name", "out", "ray_address", "fleets"),
}
"""Keys that a sweep fills in by itself."""
STAGE_1_STEPS = "pretrain.train.steps"


@dataclass(frozen=True, kw_only=True)
class AshaConfig:
    """Asynchronous successive halving on the alignment's validation; only finalists are evaluated in closed loop."""

    metric: str = "bc/r2_mean"
    """Metric of held-out demonstrations by which trials are compared."""
    mode: Literal["max", "min"] = "max"
    """Whether larger ("max") or smaller values are better."""
    grace_steps: int = 250
    """Steps before a trial may be stopped."""
    reduction_factor: float = 3.0
    """Of N trials on a rung one is promoted to the next rung, which has N times as many steps; this is N."""
    finalists: int = 3
    """Trials that are evaluated in closed loop."""


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """The contents of a file of tune_configs/."""

    data: tuple[str, ...] = field(default=("data/play",), metadata=ONCE_ONE)
    """Dataset of play for Stage 1 and co-training; or several of one robot: PATH, or PATH:WEIGHT for its share of each
    batch (default 1)."""
    demos: Path = Path("data/demos")
    """Dataset of demonstrations for Stage 2."""
    budget: Any = 0
    """Stage 1 episodes, the first of the dataset (of a mixture, of each), so that budgets are nested; 0: no Stage 1
    (behavior cloning). A motion prior has as many, unless prior.windows.num_episodes says otherwise; with 0, all."""
    demos_per_task: Any = 0
    """Demonstrations of each task (with tabletop_mixed: of each pair of tasks) that Stage 2 is given, the first of the
    dataset, every 19th of them held out; 0: align.windows.num_episodes says how many of all tasks."""
    arms: Any = field(default_factory=dict)
    """Name -> what this arm changes, see tap_ray/sweep/arms.py; with arms only those that name a `prior` have one."""
    arm: Any = None
    """Arms to run: {grid: [...]} or one name; absent: all of them."""
    seed: Any = 0
    """Random seed of Stage 2."""
    pretrain_seed: Literal["own", "trial"] = "own"
    """Seed of Stage 1: "own" for pretrain.train.seed (one Stage 1 for all seeds of Stage 2), or "trial" for the trial's
    seed, so that each seed is a replication of the whole."""
    collect: Any = field(default_factory=dict)
    """Path of a dataset named above -> fields of jobs.collect_play or jobs.collect_demos, which are run first if it
    lacks episodes that the sweep needs."""
    metric: Literal["avg_all", "avg_entire", "avg_partial"] = "avg_all"
    """Metric that ranks the trials: mean over tasks in closed loop of partial and entire success, or of one of them."""
    num_samples: int = 1
    """Number of draws of choice, uniform and loguniform; each draw is combined with every point of the grid."""
    sweep_seed: int = 0
    """Random seed of those draws."""
    pretrain: Any = field(default_factory=dict)
    """Fields of jobs.pretrain."""
    prior: Any = None
    """Fields of jobs.pretrain_prior, whose result becomes each policy's head; absent: no prior."""
    align: Any = field(default_factory=dict)
    """Fields of jobs.align."""
    evaluate: Any = field(default_factory=dict)
    """Fields of jobs.evaluate; values only, so that all trials are evaluated alike."""
    asha: AshaConfig | None = None
    """Stops trials early; absent: every trial is trained to its end and evaluated."""


def read(path: Path, *, data: Sequence[str] = (), demos: Path | None = None) -> SweepFile:
    """Read a sweep from its file; `data` and `demos` replace those named there.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), or a verb has no options.
    """
    plan = load(SweepFile, path)
    named = plan
    if not (data or plan.data):
        raise ConfigError(f"{path}: data: expected at least one dataset of play. Omit the key if budget is 0.")
    plan = replace(plan, data=absolute(data or plan.data), demos=(demos or plan.demos).resolve())
    moved = dict(zip(sources_of(named.data)[0], sources_of(plan.data)[0], strict=False))
    moved[named.demos.resolve()] = plan.demos
    arms = arms_of(plan.arms, path)
    for name in SECTIONS:
        _require_section(getattr(plan, name), name, f"{path}: {name}")
        for arm, changes in arms.items():
            _require_section(getattr(changes, name, None), name, f"{path}: arms: {arm}: {name}")
    if arms and plan.arm is None:
        plan = replace(plan, arm={"grid": list(arms)})
    plan = replace(plan, collect=_entries(plan, moved, path))
    if any(True for _ in axes_of(EvaluateConfig, plan.evaluate, "evaluate", path)):
        raise ConfigError(
            f"{path}: evaluate must have values only, because trials that are evaluated differently cannot be compared."
        )
    found = axes(plan, path)
    drawn = [axis for axis in found if axis.verb != "grid"]
    if plan.num_samples < 1 or (plan.num_samples > 1 and not drawn):
        raise ConfigError(
            f"{path}: num_samples must be at least 1, and exactly 1 if no axis is sampled; got {plan.num_samples}, "
            f"and {len(drawn)} of the {len(found)} axes are sampled (choice, uniform, loguniform)."
        )
    return plan


def _require_section(section: Any, name: str, place: str) -> None:
    """Raise an error unless a section is a mapping without keys that the sweep fills in by itself."""
    if section is None:
        return
    if not isinstance(section, Mapping):
        raise ConfigError(f"{place}: expected keys and values, got {section!r}.")
    for key in OURS[name]:
        if key in section:
            raise ConfigError(
                f"{place}: {key} is set by the sweep. Remove it: data, demos, budget and seed are given at the top "
                "level, and `cotrain: true` in an arm trains on play together with the demonstrations."
            )


def _entries(plan: SweepFile, moved: Mapping[Path, Path], where: Path) -> dict[str, Any]:
    """`collect` by absolute path; --data and --demos take the entry of the dataset that they replace with them."""
    if not isinstance(plan.collect, Mapping):
        raise ConfigError(
            f"{where}: collect: expected each dataset with what to collect into it; got {plan.collect!r}."
        )
    found, known = {}, [str(path) for path in (*data_sets(plan, where), *sources_of(plan.data)[0])]
    for name, entry in plan.collect.items():
        path = storage.to_path(str(name)).resolve()
        path = str(moved.get(path, path))
        if path not in known:
            raise ConfigError(f"{where}: collect: {name} is not a dataset of this sweep. {nearest(path, known)}")
        found[path] = dict(entry or {})
    return found


def axes(plan: SweepFile, where: Path | str = "sweep") -> list[Axis]:
    """The axes of a sweep: arm, budget, the sections in the order of `SECTIONS`, demonstrations, seed."""

    def plan_axis(name: str) -> list[Axis]:
        verb = verb_of(getattr(plan, name), name, where)
        return [Axis(name=name, verb=verb[0], values=verb[1])] if verb else []

    below = [axis for name, cls in SECTIONS.items() for axis in axes_of(cls, getattr(plan, name) or {}, name, where)]
    return [*plan_axis(ARM), *plan_axis(BUDGET), *below, *plan_axis(DEMOS), *plan_axis(SEED)]


def trials(
    plan: SweepFile, where: Path | str = "sweep", have: Mapping[Path, DatasetFacts] | None = None
) -> list[Trial]:
    """The distinct trials of a sweep: for a policy from scratch, other settings of Stage 1 do not make another trial.

    Args:
        plan: the sweep, from `read`.
        where: the sweep's file, for messages.
        have: facts about the datasets by path; None reads them.

    Raises:
        ConfigError: a field does not exist or has the wrong type, an arm is unknown, or more episodes are requested
            than there are.
        DataError: a dataset is missing.
    """
    arms = arms_of(plan.arms, where)
    have = have or {path: dataset_facts(path) for path in data_sets(plan, where)}
    made, seen = [], set()
    for values in points(plan, where):
        setting = _setting(plan, arms, values, have, where)
        trial = _trial(plan, setting, f"{len(made):03d}", {axis: setting.shown(axis) for axis in values}, where)
        differs = repr((setting.arm, trial.pretrain, trial.prior, trial.align))
        if differs in seen:
            continue
        seen.add(differs)
        require_data(trial, setting.demos_per_task, have, where)
        _require_validation(plan, trial, where)
        _require_sizes(trial, where)
        made.append(_fit_to(trial, have[plan.demos]))
    return made


def data_sets(plan: SweepFile, where: Path | str = "sweep") -> list[Path]:
    """The datasets that a trial reads: play (the arm's own, if it names one) and demonstrations."""
    arms: Mapping[str, Arm] = arms_of(plan.arms, where)
    play: list[Path] = []
    for values in points(plan, where):
        arm = chosen(values.get(ARM, plan.arm), arms, where)
        budget = values.get(BUDGET, plan.budget) if arm.budget is None else arm.budget
        if budget or (arm.prior if arms else plan.prior) is not None:
            play += sources_of(arm.data or plan.data)[0]
    return list(dict.fromkeys([*play, plan.demos]))


def points(plan: SweepFile, where: Path | str = "sweep") -> list[dict[str, Any]]:
    """Values by axis: every point of the grid for each draw. A drawn value depends only on the draw's number and the
    axis."""
    found = axes(plan, where)
    grids = [axis for axis in found if axis.verb == "grid"]
    made = []
    for number in range(plan.num_samples):
        drawn = {axis.name: draw(axis, plan.sweep_seed, number) for axis in found if axis.verb != "grid"}
        for point in itertools.product(*(axis.values for axis in grids)):
            values = drawn | dict(zip((axis.name for axis in grids), point, strict=True))
            made.append({axis.name: values[axis.name] for axis in found})
    return made


def _whole(value: Any, name: str, where: Path | str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where}: {name}: expected a whole number of at least 0, got {value!r}.")
    return value


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """One point of a sweep with its arm's changes, before configs are made of it."""

    arm: str
    sections: Mapping[str, Any]
    """Section -> its fields, without verbs; without a "prior" if there is none."""
    data: tuple[str, ...]
    budget: int
    demos_per_task: int
    num_demos: int
    """Number of demonstrations of all tasks; 0: as the section says."""
    seed: int
    cotrain: bool

    @property
    def scratch(self) -> bool:
        """Whether there is no Stage 1."""
        return self.budget == 0 or self.sections["pretrain"].get("train", {}).get("steps") == 0

    def shown(self, axis: str) -> Any:
        """The value of an axis in this trial; 0 or "-" if it has no effect on it."""
        if axis in (ARM, DEMOS, SEED):
            return getattr(self, axis)
        if axis == BUDGET:
            return 0 if self.scratch and not self.cotrain else self.budget
        section, *keys = axis.split(".")
        if self.scratch and section == "pretrain":
            return 0 if axis == STAGE_1_STEPS else "-"
        value = self.sections.get(section, "-")
        for key in keys:
            value = value.get(key, "-") if isinstance(value, Mapping) else value
        return value


def _setting(
    plan: SweepFile,
    arms: Mapping[str, Arm],
    values: Mapping[str, Any],
    have: Mapping[Path, DatasetFacts],
    where: Path | str,
) -> _Setting:
    name = values.get(ARM, plan.arm)
    arm = chosen(name, arms, where)
    sections = {}
    for section in SECTIONS:
        base, changes = getattr(plan, section), getattr(arm, section, {})
        if section != "prior" or (changes is not None and (arms or base is not None)):
            sections[section] = _filled(merged(base or {}, changes or {}), section, values)
    budget, demos, seed = (_whole(values.get(key, getattr(plan, key)), key, where) for key in (BUDGET, DEMOS, SEED))
    if demos and "num_episodes" in sections["align"].get("windows", {}):
        raise ConfigError(
            f"{where}: demos_per_task and align.windows.num_episodes set the same value. Remove one of them."
        )
    return _Setting(
        arm="" if name is None else str(name),
        sections=sections,
        data=absolute(arm.data or plan.data),
        budget=budget if arm.budget is None else _whole(arm.budget, f"arms: {name}: budget", where),
        demos_per_task=demos,
        num_demos=demos * have[plan.demos].num_tasks,
        seed=seed,
        cotrain=arm.cotrain,
    )


def _trial(plan: SweepFile, setting: _Setting, id: str, shown: Mapping[str, Any], where: Path | str) -> Trial:
    sections, budget, seed = setting.sections, setting.budget, setting.seed
    place = {name: f"{where}: {setting.arm + ': ' if setting.arm else ''}{name}" for name in SECTIONS}
    pretrain = prior = None
    if setting.scratch:
        from_dict(PretrainConfig, _without(sections["pretrain"]), where=place["pretrain"])
    else:
        config = from_dict(PretrainConfig, {**sections["pretrain"], "data": setting.data}, where=place["pretrain"])
        pretrain = replace(config, windows=replace(config.windows, num_episodes=budget))
    if "prior" in sections:
        prior = from_dict(PriorJobConfig, {**sections["prior"], "data": setting.data}, where=place["prior"])
        if budget and "num_episodes" not in sections["prior"].get("windows", {}):
            prior = replace(prior, windows=replace(prior.windows, num_episodes=budget))
    if plan.pretrain_seed == "trial":
        pretrain = pretrain and replace(pretrain, train=replace(pretrain.train, seed=seed))
        prior = prior and replace(prior, train=replace(prior.train, seed=seed))
    align = from_dict(
        AlignJobConfig, {**sections["align"], "demos": plan.demos, "init": "scratch"}, where=place["align"]
    )
    align = replace(align, train=replace(align.train, seed=seed))
    if setting.num_demos:
        align = replace(align, windows=replace(align.windows, num_episodes=setting.num_demos))
    if setting.cotrain and budget:
        align = replace(align, play=setting.data, align=replace(align.align, play_episodes=budget))
    evaluate = from_dict(EvaluateConfig, {**sections["evaluate"], "policy": "-"}, where=place["evaluate"])
    return Trial(id=id, values=shown, pretrain=pretrain, prior=prior, align=align, evaluate=evaluate)


def _without(section: Mapping[str, Any]) -> dict[str, Any]:
    """A pretrain section whose steps may be 0."""
    train = {key: value for key, value in section.get("train", {}).items() if key != "steps"}
    return {**section, "train": train}


def _filled(section: Mapping[str, Any], prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section in which each verb is replaced by the trial's value."""
    made = {}
    for key, value in section.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            value = values[name] if name in values else _filled(value, name, values)
        made[key] = value
    return made


def _require_validation(plan: SweepFile, trial: Trial, where: Path | str) -> None:
    """Raise an error unless each trial is validated before successive halving may stop it."""
    if plan.asha is None:
        return
    every, grace = trial.align.train.validate_every, plan.asha.grace_steps
    if not trial.align.windows.holdout_every or not 1 <= every <= grace:
        raise ConfigError(
            f"{where}: asha needs metrics of held-out demonstrations from step {grace} on (asha.grace_steps); got "
            f"align.train.validate_every {every} and align.windows.holdout_every {trial.align.windows.holdout_every}. "
            f"Validate every 1 to {grace} steps, and hold out some episodes."
        )


def _require_sizes(trial: Trial, where: Path | str) -> None:
    """Raise an error unless Stage 2 has Stage 1's sizes, which would be seen after Stage 1 has been trained."""
    if trial.pretrain is None:
        return
    policies = (trial.pretrain.policy, trial.align.policy)
    try:
        resolve_policy(*(replace(policy, num_state=min(policy.num_state, 1)) for policy in policies))
    except ConfigError as error:
        raise ConfigError(f"{where}: trial {trial.id}: {error}") from None


def _fit_to(trial: Trial, demos: DatasetFacts) -> Trial:
    """Set the evaluation's image size and robot to those of the demonstrations, unless `env` determines the robot."""
    evaluate = replace(trial.evaluate, image_size=demos.image_size)
    if not evaluate.env:
        evaluate = replace(evaluate, robot=demos.robot, cameras=demos.cameras)
    return replace(trial, evaluate=evaluate)
