"""Checks a dataset's content: coverage, contact, duplicates, images, instructions, outliers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tap_ray.dataset.layout import ACTION, STATE, DatasetHeader
from tap_ray.inspect.dataset.check import MANY, Check, Kind, counted, most
from tap_ray.inspect.dataset.frames import Frames, Seen
from tap_ray.inspect.dataset.survey import MOVES, EpisodeStats, Survey, longest_run, stat
from tap_ray.metrics import entropy_bits
from tap_ray.play.report import LEAF_M
from tap_ray.types import PLAY_TASK

IN_ONE_PLACE = 0.5
"""Share of the steps in one voxel above which coverage is questionable."""
NEAR = 0.1
"""Distance of two paths, in standard deviations of the dataset's states. Successful demonstrations of one task by our
scripted expert never come closer than 0.26 (1000 of five tasks)."""
COMPARED = 4000
"""Largest number of episodes that are compared with each other for near duplicates."""
ENOUGH = 10
"""Smallest number of episodes of an instruction for which outliers among them are searched."""
FACTOR, FAR = 2.0, 40.0
"""An outlier's length or speed differs from the median by at least this factor, and its image from the median one by at
least this many gray levels of 255."""
STANDS_OUT = 3.5
"""Modified z-score beyond which a value is an outlier (Iglewicz & Hoaglin 1993, How to Detect and Handle Outliers)."""


def coverage(survey: Survey) -> Check:
    """Check how much of the workspace was visited, and how evenly."""
    std, acts = stat(survey.dataset, STATE, "std"), stat(survey.dataset, ACTION, "std")
    values = [*zip(survey.spec.state, std, strict=True), *zip(survey.spec.action, acts, strict=True)]
    constant = [slot.name for slot, value in values if value < 1e-6 and "gripper" not in slot.name]
    numbers: dict[str, Any] = {"constant_slots": constant}
    threshold = (
        f"{IN_ONE_PLACE:.0%} of the steps in one voxel of {100 * LEAF_M:g} cm, or numbers that never change: a policy "
        "cannot learn about states that were not visited"
    )
    if not survey.spec.state:
        text = "the dataset has no states, so the positions of the robot are unknown"
        return Check(name="coverage", kind="not known", text=text, numbers={}, threshold=threshold)
    findings = [f"{', '.join(constant)} never changes"] if constant else []
    good = f"all {len(survey.spec.state)} numbers of the state change"
    if survey.voxels:
        counts = np.array(list(survey.voxels.values()))
        most = float(counts.max() / counts.sum())
        bits = entropy_bits(counts)
        numbers |= {"voxels": len(counts), "entropy_bits": bits, "largest_share": most}
        good = (
            f"{len(counts)} voxels of {100 * LEAF_M:g} cm were visited, as many as {2**bits:.0f} visited equally often"
        )
        if most > IN_ONE_PLACE:
            findings.append(f"{most:.0%} of the steps are in one voxel of {100 * LEAF_M:g} cm")
    return Check(
        name="coverage",
        kind="look at this" if findings else "good",
        text="; ".join(findings) or good,
        numbers=numbers,
        threshold=threshold,
    )


def contact_known(header: DatasetHeader) -> bool:
    """Whether contact is known: not in an import, nor with an adapter that does not state it."""
    if not header.contact or header.plan.get("kind") == "import":  # older imports had an empty column
        return False
    return bool(header.plan.get("adapter", {"contact": "it"}).get("contact"))


def contact(survey: Survey) -> Check:
    """Check how often a finger touches an object, and how often the gripper holds one."""
    held = [g.holds for each in survey.episodes for g in each.grippers if g.holds is not None]
    numbers: dict[str, Any] = {"share": None, "held_share": sum(held) / survey.steps if held else None}
    says = (
        f"; according to its opening, the gripper holds something in {numbers['held_share']:.0%} of the steps"
        if held
        else ""
    )
    threshold = f"{MANY:.0%} of the steps: Stage 1 learns which object is touched next, so it needs contacts"
    if not contact_known(survey.dataset.header):
        text = f"the dataset has no finger contact{says}"
        return Check(name="contact", kind="not known", text=text, numbers=numbers, threshold=threshold)
    share = survey.share("contact")
    without = sum(each.contact == 0 for each in survey.episodes) / len(survey.episodes)
    numbers |= {"share": share, "episodes_without_share": without}
    text = f"a finger is on an object in {share:.0%} of the steps, in {1 - without:.0%} of the episodes{says}"
    kind: Kind = "not fit" if share == 0 else "look at this" if share < MANY else "good"
    return Check(
        name="contact",
        kind=kind,
        text=f"for Stage 1's next object: {text}" if share == 0 else text,
        numbers=numbers,
        threshold=threshold,
    )


def duplicates(survey: Survey) -> Check:
    """Check whether episodes are repeated."""
    groups: dict[bytes, list[int]] = {}
    for each in survey.episodes:
        groups.setdefault(each.digest, []).append(each.index)
    equal = [group for group in groups.values() if len(group) > 1]
    copies = sum(len(group) - 1 for group in equal)
    seen, near = near_duplicates([each for each in survey.episodes if groups[each.digest][0] == each.index])
    findings = []
    if copies:
        findings.append(f"{counted(copies, 'episode is a copy', 'episodes are copies')} of another, number for number")
    if near:
        findings.append(f"{counted(len(near), 'pair', 'pairs')} of episodes have nearly the same path")
    pairs = [(group[0], group[1]) for group in equal] + [(a, b) for _, a, b in near]
    return Check(
        name="duplicates",
        kind="look at this" if findings else "good",
        text="; ".join(findings) or f"no episode is a copy of another ({seen} compared)",
        numbers={
            "copies": copies,
            "near_pairs": len(near),
            "compared": seen,
            "pairs": [list(pair) for pair in pairs[:20]],
        },
        threshold=f"paths closer than {NEAR:g} standard deviations of the states (root mean square; lengths within a "
        f"tenth; {COMPARED} episodes at most): copies among the held-out episodes make validation metrics too good",
        episodes=tuple(dict.fromkeys(index for pair in pairs[:3] for index in pair)),
        why={one: f"the same motion as episode {other}" for pair in pairs[:3] for one, other in (pair, pair[::-1])},
    )


def near_duplicates(episodes: Sequence[EpisodeStats]) -> tuple[int, list[tuple[float, int, int]]]:
    """The number of compared episodes, and near duplicates: distance and both indices, closest first."""
    at = np.unique(np.linspace(0, len(episodes) - 1, min(len(episodes), COMPARED)).round().astype(int))
    some = [episodes[n] for n in at]
    paths = np.stack([each.outline for each in some])
    if not paths.shape[1]:
        return 0, []
    lengths = np.log([each.steps for each in some])
    squares = (paths**2).sum(axis=1, dtype=np.float64)
    found = []
    for begin in range(0, len(some), 256):
        block = slice(begin, begin + 256)
        apart = squares[block, None] + squares - 2 * paths[block].astype(np.float64) @ paths.T.astype(np.float64)
        close = apart / paths.shape[1] < NEAR**2
        close &= np.abs(lengths[block, None] - lengths) < 0.1
        for a, b in np.argwhere(close):
            if begin + a < b:
                distance = float(np.sqrt(max(apart[a, b], 0.0) / paths.shape[1]))
                found.append((distance, some[begin + a].index, some[b].index))
    return len(some), sorted(found)


def images(frames: Frames, camera: str = "") -> Check:
    """Check whether images are black, of one color, or frozen while the robot moves. `camera` is the name of a camera
    that is not the first."""
    black = sum(len(each.black) for each in frames.episodes)
    flat = sum(len(each.flat) for each in frames.episodes)
    frozen = sum(each.num_frozen for each in frames.episodes)
    moving = sum(each.moving for each in frames.episodes)
    findings = []
    if black:
        findings.append(f"{black} are black")
    if flat:
        findings.append(f"{flat} have a single color")
    if frozen > 0.01 * moving:
        findings.append(
            f"{frozen} are identical to the previous one although the robot moves ({frozen / moving:.0%} of such steps)"
        )
    worst = most(frames.episodes, lambda each: len(each.black) + len(each.flat) + each.num_frozen) if findings else ()
    moves = " or ".join(f"{value:g} {unit}" for unit, value in MOVES.items())
    unfit = black + flat + frozen > 0.5 * max(frames.num, 1)
    text = f"of {frames.num} images " + (", ".join(findings) or "none is black, of one color or frozen")
    return Check(
        name=f"images {camera}" if camera else "images",
        kind="not fit" if unfit else "look at this" if findings else "good",
        text=f"for learning from images: {text}" if unfit else text,
        numbers={"images": frames.num, "black": black, "flat": flat, "frozen": frozen, "moving_steps": moving},
        threshold=f"any black or empty image, or 1% of frozen ones while the robot moves {moves} in a step: the camera "
        "dropped frames, so images and states do not match",
        episodes=worst,
        why=dict.fromkeys(worst, "black, empty or frozen images"),
        at={each.index: _bad_part(each) for each in frames.episodes if each.index in worst},
    )


def _bad_part(seen: Seen) -> tuple[int, int]:
    """The first sequence of images that are black, of one color or frozen, with two images around it."""
    bad = np.zeros(seen.frames, bool)
    bad[[*seen.black, *seen.flat, *range(seen.frozen[0], sum(seen.frozen))]] = True
    begin, length = longest_run(bad)
    return max(begin - 2, 0), min(begin + length + 2, seen.frames)


def language(survey: Survey) -> Check:
    """Check which instructions there are, and whether they are spelled consistently."""
    counts = Counter(each.instruction for each in survey.episodes)
    numbers: dict[str, Any] = {"instructions": dict(counts.most_common(200)), "different": len(counts)}
    threshold = (
        "an instruction that is missing in some episodes only, or is spelled in several ways: case, spaces and a "
        "period make it another sentence"
    )
    if set(counts) == {PLAY_TASK}:
        text = "the dataset is play without instructions, for Stage 1; demonstrations (Stage 2) need instructions"
        return Check(name="language", kind="good", text=text, numbers=numbers, threshold=threshold)
    empty = sum(num for text, num in counts.items() if text.strip() in ("", PLAY_TASK))
    spelt: dict[str, list[str]] = {}
    for text in counts:
        spelt.setdefault(" ".join(text.lower().split()).rstrip(" ."), []).append(text)
    several = [texts for texts in spelt.values() if len(texts) > 1]
    findings = []
    if empty:
        findings.append(f"{counted(empty, 'episode has', 'episodes have')} no instruction")
    if several:
        spellings = " / ".join(map(repr, several[0]))
        findings.append(
            f"{counted(len(several), 'instruction is', 'instructions are')} spelled in several ways: {spellings}"
        )
    unfit = empty == len(survey.episodes)
    few = min(counts.values())
    good = (
        f"{len(counts)} instructions, each in {few} to {max(counts.values())} episodes"
        if len(counts) > 1
        else f"one instruction: {next(iter(counts))!r}"
    )
    worst = tuple(each.index for each in survey.episodes if each.instruction.strip() in ("", PLAY_TASK))[:3]
    return Check(
        name="language",
        kind="not fit" if unfit else "look at this" if findings else "good",
        text="; ".join(["for Stage 2"] * unfit + findings) or good,
        numbers=numbers | {"without": empty, "several_spellings": several},
        threshold=threshold,
        episodes=worst,
        why=dict.fromkeys(worst, "no instruction"),
    )


def outliers(survey: Survey, frames: Frames) -> Check:
    """Check which episodes are outliers in length, motion or appearance."""
    found: dict[int, str] = {}
    scores: dict[int, float] = {}
    for index, score, why in (*_by_numbers(survey), *_by_look(frames)):
        if score > scores.get(index, 0.0):
            scores[index], found[index] = score, why
    order = sorted(scores, key=lambda index: -scores[index])
    text = f"{counted(len(order), 'episode stands', 'episodes stand')} out, of {len(survey.episodes)}"
    if order:
        text += f"; most: {order[0]}, {found[order[0]]}"
    many = len(order) > 0
    return Check(
        name="episodes that stand out",
        kind="look at this" if many else "good",
        text=text if many else "no episode stands out by length, motion or first image",
        numbers={"num": len(order), "episodes": order[:50]},
        threshold=f"a modified z-score of {STANDS_OUT:g} (Iglewicz & Hoaglin 1993) of length or speed, and {FACTOR:g} "
        f"times the usual value; or of the first image, and a difference of {FAR:g} of 255: these are often failed "
        "recordings",
        episodes=tuple(order[:6]),
        why=found,
    )


def _by_numbers(survey: Survey) -> Iterator[tuple[int, float, str]]:
    """Compare with the episodes of the same instruction if there are enough of them, otherwise with all."""
    groups: dict[str, list[EpisodeStats]] = {}
    for each in survey.episodes:
        groups.setdefault(each.instruction, []).append(each)
    small = min(map(len, groups.values())) < ENOUGH
    for group in [survey.episodes] if small else groups.values():
        lengths = np.array([each.steps for each in group], float)
        for each, score, times in _standing_out(group, lengths):
            seconds = each.steps / survey.spec.control_hz
            yield each.index, score, f"{seconds:.3g} s long, {times:.2g} times the usual length"
        speeds = np.array([each.speed for each in group])
        for each, score, times in _standing_out(group, speeds):
            yield each.index, score, f"moves {times:.2g} times as fast as usual"


def _standing_out(group: Sequence[EpisodeStats], values: np.ndarray) -> Iterator[tuple[EpisodeStats, float, float]]:
    """The outliers, their z-scores, and their ratios to the median."""
    if not (middle := float(np.median(values))) > 0:
        return
    times = values / middle
    for each, score, factor in zip(group, modified_z(np.log(np.maximum(times, 1e-3))), times, strict=True):
        if score > STANDS_OUT and not 1 / FACTOR < factor < FACTOR:
            yield each, float(score), float(factor)


def _by_look(frames: Frames) -> Iterator[tuple[int, float, str]]:
    if not frames.episodes:
        return
    looks = np.stack([each.look for each in frames.episodes])
    away = np.sqrt(((looks - np.median(looks, axis=0)) ** 2).mean(axis=1))
    for each, far, score in zip(frames.episodes, away, modified_z(away), strict=True):
        if score > STANDS_OUT and far > FAR:
            yield each.index, float(score), f"its first image differs from the others (by {far:.0f} of 255)"


def modified_z(values: np.ndarray) -> np.ndarray:
    """Distance from the median in robust standard deviations; 0 where all are equal.

    Source: Iglewicz & Hoaglin (1993): 0.6745 / median absolute deviation; where that is 0, 1 / 1.2533 of the mean one.
    """
    away = np.abs(values - np.median(values))
    scale = float(np.median(away)) / 0.6745 or float(away.mean()) * 1.2533
    return away / scale if scale > 1e-9 else np.zeros(len(values))
