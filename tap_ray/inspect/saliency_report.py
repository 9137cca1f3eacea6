"""Runs Grad-CAM for several policies on the same episodes and writes numbers, filmstrips and videos.

policies + clips -> maps -> saliency mass -> saliency.json, strips/, videos/
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

import numpy as np

from tap_ray import runs
from tap_ray.config import to_dict
from tap_ray.errors import ConfigError
from tap_ray.evaluate.episodes import MakePolicy
from tap_ray.evaluate.protocol import Protocol
from tap_ray.evaluate.settings import EvaluateConfig, protocol_of
from tap_ray.inspect import filmstrips, saliency_mass
from tap_ray.inspect.clips import EpisodeClip
from tap_ray.inspect.saliency import VIEWS, saliency
from tap_ray.inspect.settings import SaliencyConfig
from tap_ray.models.build import PolicyBundle, load_bundle, new_policy
from tap_ray.models.inference import PolicyRunner
from tap_ray.progress_bar import progress_bar
from tap_ray.specs import ONE_CAMERA, RobotSpec, require_compatible
from tap_ray.training.stage import FINAL
from tap_ray.types import EnvConfig

NUM_FRESH = 3
"""Number of networks with random weights whose shares are averaged: a single one may prefer any place."""
REPORT = "saliency.json"


@dataclass(frozen=True, kw_only=True)
class InspectedPolicy:
    """A policy whose saliency maps are computed."""

    name: str
    stage: int
    """1: the policy is conditioned on crops or goal images; 2: on instructions."""
    bundle: PolicyBundle


def load_policies(config: SaliencyConfig) -> list[InspectedPolicy]:
    """Load the policies.

    Raises:
        CheckpointError: a run is missing, not finished, or holds no policy.
        ConfigError: two folders have the same name, a policy cannot be used here or cannot drive, or two need different
            images.
    """
    if not config.policy:
        raise ConfigError("--policy must name at least one run folder.")
    found = [_load_policy(path) for path in config.policy]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"The run folders of --policy must have different names; got {', '.join(names)}.")
    sizes = {one.name: one.bundle.network.config.image_size for one in found}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size} px" for name, size in sizes.items())
        raise ConfigError(f"All policies must be trained on images of the same size and the same robot; got {listed}.")
    if config.driver == "policy" and (len(found) > 1 or found[0].stage == 1):
        raise ConfigError("Only a single policy of Stage 2 (jobs.align) can move the robot. Use --driver expert.")
    return found


def _load_policy(path: Path) -> InspectedPolicy:
    job = (
        runs.read_json(path / "manifest.json", needs=("job",))["job"] if (path / "manifest.json").exists() else "align"
    )
    runs.require_done(path, job="pretrain" if job == "pretrain" else "align")
    bundle = load_bundle(path / FINAL)
    return InspectedPolicy(name=path.resolve().name, stage=1 if bundle.tokenizer is None else 2, bundle=bundle)


def protocol_for(
    config: SaliencyConfig, found: Sequence[InspectedPolicy], *, sim: str, suite_tasks: Iterable[str], env_version: str
) -> Protocol:
    """The protocol of the analyzed cells, with the robot and images that the policies were trained for."""
    first = found[0].bundle
    evaluation = EvaluateConfig(
        policy="",
        suite=sim if config.env else config.suite,
        tasks=config.tasks,
        episodes=config.episodes,
        max_steps=config.max_steps,
        image_size=first.network.config.image_size,
        robot=first.spec.robot,
        cameras=ONE_CAMERA if config.env else first.spec.cameras,
        seed=config.seed,
    )
    return protocol_of(evaluation, sim=sim, suite_tasks=suite_tasks, env_version=env_version)


def require_robot(found: Sequence[InspectedPolicy], spec: RobotSpec) -> None:
    """Raise SpecError unless all policies were trained for this robot's interface."""
    for one in found:
        have, want = f"robot {spec.robot!r}", f"policy {one.name}"
        require_compatible(spec, one.bundle.spec, have_name=have, want_name=want)


def require_crops(found: Sequence[InspectedPolicy], *, there: bool) -> None:
    """Raise a ConfigError for policies that are conditioned on crops, unless crops can be cut `there`."""
    for one in () if there else found:
        if one.stage == 1 and "crops" in one.bundle.network.config.context:
            raise ConfigError(
                f"{one.name} looks for what crops show, and the adapter does not say where the robot is and what it "
                "touches (robot_mask, contact). Give a run of inverse dynamics, or of jobs.align."
            )


def made_by(config: SaliencyConfig, protocol: Protocol) -> dict[str, Any]:
    """The settings that determine a run; without `env`, as in runs from before that flag existed."""
    values = to_dict(config)
    return {key: value for key, value in values.items() if key != "env" or value} | {"protocol": protocol.hash}


def policy_drives(config: SaliencyConfig, found: Sequence[InspectedPolicy]) -> bool:
    """Whether the policy moves the robot."""
    return config.driver == "policy" or (config.driver == "auto" and len(found) == 1 and found[0].stage == 2)


def driver_of(one: InspectedPolicy) -> MakePolicy:
    """The policy as its own driver, for any number of robots."""

    def make(scene: EnvConfig, num_robots: int) -> PolicyRunner:
        return PolicyRunner(one.bundle)

    return make


@dataclass(frozen=True, kw_only=True)
class ViewSaliency:
    """The saliency of one policy in one clip and one view ("image" or "goal"; of a further camera "wrist image")."""

    share: saliency_mass.SaliencyMass
    best: saliency_mass.SaliencyMass
    """The largest mass that maps with this number of cells can reach."""
    overlay: np.ndarray
    """(F, Y, X, 3) uint8."""
    num_blank: int
    """Number of frames with a map of zeros; they count in no share."""
    grid: int
    """Number of cells in a row."""


def inspect_clips(
    config: SaliencyConfig,
    found: Sequence[InspectedPolicy],
    shown: Iterable[EpisodeClip],
    *,
    total: int,
    folder: Path,
    fps: float,
) -> dict[str, Any]:
    """Explain every clip, write its strip and video; returns what `saliency.json` holds."""
    fresh = {one.name: [_fresh(one, seed) for seed in range(NUM_FRESH)] for one in found}
    per_episode: dict[str, dict[int, saliency_mass.SaliencyMass]] = {}
    episodes, blank = [], Counter()
    for number, clip in enumerate(progress_bar(iterable=shown, total=total, unit="episode", delay=1)):
        episodes.append({"task": clip.cell.task, "initial_state": clip.cell.initial_state, "frames": len(clip.state)})
        rows = dict(_cameras(clip, found[0].bundle.spec.cameras))
        for one in found:
            random = [explain(config, each, clip) for each in fresh[one.name]]
            for view, seen in explain(config, one, clip).items():
                name = f"{one.name}, {view}"
                of = {
                    name: seen.share,
                    f"{name}, fresh weights": saliency_mass.mean_mass([each[view].share for each in random]),
                    f"{view}, at best of {seen.grid} x {seen.grid} cells": seen.best,
                }
                for key, share in of.items() if view in VIEWS else ():  # of other cameras no pixel is known
                    per_episode.setdefault(key, {})[number] = share
                blank[name] += seen.num_blank
                rows[name + _told_of(seen.share)] = seen.overlay
        name = f"{clip.cell.task}-{clip.cell.initial_state:03d}"
        filmstrips.write_strip(folder / "strips" / f"{name}.png", rows, title=clip.instruction, every=config.every)
        filmstrips.write_clip(folder / "videos" / f"{name}.mp4", rows, title=clip.instruction, fps=fps)
    return _report(found, {name: list(of.values()) for name, of in per_episode.items()}, episodes, blank)


def _cameras(clip: EpisodeClip, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """What each camera saw, by the name of its row."""
    rgb = clip.rgb[: len(clip.state)]
    if rgb.ndim == 4:
        yield "camera", rgb
        return
    for at, name in enumerate(names):
        yield f"camera {name}", rgb[:, at]


def explain(config: SaliencyConfig, one: InspectedPolicy, clip: EpisodeClip) -> dict[str, ViewSaliency]:
    """Compute view -> saliency."""
    num, ahead = len(clip.state), config.goal_offset
    frames = {"image": slice(0, num), "goal": slice(ahead, num + ahead)}
    maps = saliency(
        one.bundle,
        clip.rgb[frames["image"]],
        clip.rgb[frames["goal"]],
        state=clip.state,
        sentence=[clip.instruction] * num,
        crops=clip.crops,
        sign=config.cam,
    )
    found = {}
    for view, of in maps.items():
        at, regions = frames[of.view], () if of.camera else clip.regions
        rgb = clip.rgb[at] if clip.rgb.ndim == 4 else clip.rgb[at, of.camera]
        whose = clip.segmentation[at]
        found[view] = ViewSaliency(
            share=saliency_mass.known(saliency_mass.saliency_mass(of.map_TYX, whose), regions),
            best=saliency_mass.known(saliency_mass.upper_bound(whose, of.upsample_YG), regions),
            overlay=filmstrips.overlay(rgb, of.map_TYX),
            num_blank=int((of.map_TYX.max((1, 2)) == 0).sum()),
            grid=of.upsample_YG.shape[1],
        )
    return found


def _told_of(share: saliency_mass.SaliencyMass) -> str:
    """Caption: the share on the gripper, or on the whole robot if only that is known; "" if neither is."""
    for region in ("gripper", "arm"):
        mass, pixels = share[region]
        if not np.isnan(mass):
            return f": {region} {100 * mass:.0f} % of mass, {100 * pixels:.0f} % of pixels"
    return ""


def _fresh(one: InspectedPolicy, seed: int) -> InspectedPolicy:
    """The same network with random weights, which shows what the architecture alone gives."""
    bundle = one.bundle
    network = new_policy(bundle.network.config, seed=seed, tokenizer=bundle.tokenizer).eval()
    return replace(one, bundle=replace(bundle, network=network))


def _report(
    found: Sequence[InspectedPolicy],
    per_episode: dict[str, list[saliency_mass.SaliencyMass]],
    episodes: list[dict[str, Any]],
    blank: Mapping[str, int],
) -> dict[str, Any]:
    of_task: dict[str, list[int]] = {}
    for number, episode in enumerate(episodes):
        of_task.setdefault(episode["task"], []).append(number)
    first, *others = [f"{one.name}, image" for one in found]
    return {
        "stage": {one.name: one.stage for one in found},
        "episodes": episodes,
        "frames": sum(episode["frames"] for episode in episodes),
        "frames_without_map": dict(blank),
        "all": {name: saliency_mass.summary(values) for name, values in per_episode.items()},
        "more_mass_than": {
            f"{other} - {first}": saliency_mass.difference(per_episode[first], per_episode[other]) for other in others
        },
        "tasks": {
            task: {name: saliency_mass.summary([values[n] for n in numbers]) for name, values in per_episode.items()}
            for task, numbers in of_task.items()
        },
        "per_episode": {
            name: [{region: [_plain(x) for x in pair] for region, pair in one.items()} for one in values]
            for name, values in per_episode.items()
        },
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value


def metrics(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of a report as flat metrics, e.g. "saliency/bc50, image/gripper_ratio"."""
    flat = {}
    for name, regions in report["all"].items():
        for region, numbers in regions.items():
            for key in ("mass", "ratio"):
                if numbers[key] is not None:
                    flat[f"saliency/{name}/{region}_{key}".replace(", ", "/").replace(" ", "_")] = numbers[key]
    return flat


def text(report: dict[str, Any]) -> str:
    """The table that the job prints."""
    num = len(report["episodes"])
    lines = [
        f"% of the map / % of the pixels, their ratio (95 % bootstrap over {num} episodes, {report['frames']} frames)",
        *saliency_mass.text(report["all"]),
    ]
    blank = {name: n for name, n in report["frames_without_map"].items() if n}
    lines += [f"{name}: {n} frames without a saliency map were omitted" for name, n in blank.items()]
    for pair, regions in report["more_mass_than"].items():
        of = regions["gripper"]
        if of["low"] is not None:
            interval = f"{100 * of['low']:+.1f} to {100 * of['high']:+.1f}"
            lines.append(f"share of the map on the gripper, {pair}: {100 * of['mass']:+.1f} points ({interval})")
    return "\n".join(lines)
