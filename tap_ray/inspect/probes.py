"""Fits linear probes, which show which positions can be predicted from a policy's frozen features (ridge regression in
closed form).

Frames of one episode resemble each other, so training, choice of the penalty and test use different episodes.
"""

from dataclasses import dataclass
from typing import Mapping

import numpy as np

from tap_ray.dataset import layout
from tap_ray.dataset.reader import DatasetInfo, read_episode
from tap_ray.errors import ConfigError, DataError
from tap_ray.media.image import decode_jpeg
from tap_ray.media.text_table import columns
from tap_ray.metrics import r_squared
from tap_ray.specs import ONE_CAMERA
from tap_ray.types import Episode

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidate penalties, relative to the mean eigenvalue of the features' covariance."""
HOLDOUT_EVERY = 4
"""Every N-th episode is in the test set; of the others, every N-th is used to choose the penalty."""
AXES = ("x", "y", "z")


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """F frames of a dataset, with the targets that probes predict."""

    rgb: np.ndarray
    """(F, Y, X, 3) uint8, of V > 1 cameras (F, V, Y, X, 3)."""
    next_rgb: np.ndarray
    """Likewise, the frame one step later: the goal image that Stage 1 features were made for."""
    state: np.ndarray
    """(F, S) float32; only policies that read it get it."""
    sentence: list[str]
    """(F) instruction of each frame's episode."""
    episode: np.ndarray
    """(F,) int64."""
    target: Mapping[str, np.ndarray]
    """"gripper" (of several arms "left_gripper" ...), then each object's name -> (F, 3) m, base frame; NaN where the
    object is not in the scene."""
    cameras: tuple[str, ...] = ONE_CAMERA


def read_frames(dataset: DatasetInfo, *, num_episodes: int, every: int) -> ProbeData:
    """Frames of the first episodes of a dataset.

    Args:
        dataset: a dataset with privileged object poses.
        num_episodes: how many episodes; 0 reads all.
        every: take every N-th frame.

    Raises:
        DataError: the dataset has no object poses, or fewer than 2 * `HOLDOUT_EVERY` episodes.
    """
    if layout.OBJECT_POSE not in dataset.info["features"]:
        raise DataError(
            f"{dataset.path} has no privileged object poses ({layout.OBJECT_POSE}), so a probe has no targets. Give a "
            "dataset of jobs.collect_play or jobs.collect_demos."
        )
    num = min(num_episodes or len(dataset), len(dataset))
    if num < 2 * HOLDOUT_EVERY:
        raise DataError(f"A probe needs at least {2 * HOLDOUT_EVERY} episodes; got {num} of {dataset.path}.")
    arms = [arm for arm in dataset.spec.arms if arm.ee_pos]
    rgb, next_rgb, state, number, sentence, seen, blank = [], [], [], [], [], [], []
    columns = (*layout.image_columns(dataset.spec), layout.STATE, layout.OBJECT_POSE)
    for index in range(num):
        episode = read_episode(dataset, index, columns)
        steps = range(0, len(episode.state) - 1, every)
        rgb += [_frame(episode, t) for t in steps]
        next_rgb += [_frame(episode, t + 1) for t in steps]
        state.append(episode.state[steps])
        number += [index] * len(steps)
        sentence += [episode.task] * len(steps)
        names = str(episode.meta["objects"]).split(",")
        places = {name: episode.object_pose[steps, slot, :3] for slot, name in enumerate(names) if name}
        grippers = {f"{arm.side}gripper": episode.state[steps][:, arm.ee_pos] for arm in arms}
        seen.append({**grippers, **places})
        blank.append(np.full((len(steps), 3), np.nan))
    known = list(dict.fromkeys(name for places in seen for name in places))
    return ProbeData(
        rgb=np.stack(rgb),
        next_rgb=np.stack(next_rgb),
        state=np.concatenate(state),
        sentence=sentence,
        episode=np.array(number),
        target={k: np.concatenate([p.get(k, none) for p, none in zip(seen, blank, strict=True)]) for k in known},
        cameras=dataset.spec.cameras,
    )


def _frame(episode: Episode, t: int) -> np.ndarray:
    images = [decode_jpeg(camera[t]) for camera in (episode.image_jpeg, *episode.extra_jpeg)]
    return np.stack(images) if len(images) > 1 else images[0]


def probe(features_FD: np.ndarray, data: ProbeData) -> dict[str, dict[str, float]]:
    """Held-out R^2 of each position along each axis.

    Args:
        features_FD: (F, D) frozen features of the frames of `data`.
        data: the frames and their targets.

    Returns:
        target -> {"x", "y", "z": R^2, without the axes along which it never moves in the test; "num_test": frames}.
        Targets seen in fewer than 2 * `HOLDOUT_EVERY` episodes are left out.
    """
    if len(features_FD) != len(data.episode):
        raise ConfigError(
            f"{len(data.episode)} frames need the same number of rows of features; got shape {features_FD.shape}."
        )
    scores = {}
    for name, target_F3 in data.target.items():
        there = np.isfinite(target_F3).all(1)
        if len(np.unique(data.episode[there])) < 2 * HOLDOUT_EVERY:
            continue
        r2, num_test = held_out_r2(features_FD[there], target_F3[there], data.episode[there])
        moving = {axis: float(value) for axis, value in zip(AXES, r2, strict=True) if np.isfinite(value)}
        scores[name] = {**moving, "num_test": num_test}
    return scores


def table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The results of `probe` as text, by the name of the weights."""
    rows = [["weights", "position of", "x", "y", "z", "frames tested"]]
    for weights, targets in scores.items():
        for target, score in targets.items():
            values = (f"{score[axis]:.2f}" if axis in score else "-" for axis in "xyz")
            rows.append([weights, target, *values, str(score["num_test"])])
    return "\n".join(columns(rows, left=2))


def held_out_r2(x_ND: np.ndarray, y_NK: np.ndarray, episode_N: np.ndarray) -> tuple[np.ndarray, int]:
    """R^2 (K,) of a ridge regression on held-out episodes, and the number of their rows.

    The penalty with the best mean R^2 on validation episodes is chosen; then all episodes except the test set are
    fitted again.
    """
    test_N = _holdout(episode_N)
    rest_x, rest_y, choose = x_ND[~test_N], y_NK[~test_N], _holdout(episode_N[~test_N])
    trials = ridge(rest_x[~choose], rest_y[~choose], rest_x[choose], PENALTIES)
    variance = rest_y[choose].var(0).sum() + 1e-12
    error = [((rest_y[choose] - guess) ** 2).mean(0).sum() / variance for guess in trials]
    best = PENALTIES[int(np.argmin(error))]
    [guess] = ridge(rest_x, rest_y, x_ND[test_N], (best,))
    return r_squared(guess, y_NK[test_N], min_std=1e-3), int(test_N.sum())


def ridge(x_ND: np.ndarray, y_NK: np.ndarray, new_MD: np.ndarray, penalties: tuple[float, ...]) -> list[np.ndarray]:
    """Predictions (M, K) for new rows, one for each penalty: w = (X'X + p t I)^-1 X'y with X standardized.

    t is the mean eigenvalue of X'X, so that one penalty means the same for any number of rows and features.

    Source: Hoerl and Kennard (1970), Technometrics 12:55.
    """
    mean, std = x_ND.mean(0), x_ND.std(0)
    std = np.where(std > 1e-6, std, 1.0)
    x, new, center = (x_ND - mean) / std, (new_MD - mean) / std, y_NK.mean(0)
    gram, right = x.T @ x, x.T @ (y_NK - center)
    scale = np.trace(gram) / len(gram)
    identity = np.eye(len(gram))
    return [new @ np.linalg.solve(gram + p * scale * identity, right) + center for p in penalties]


def _holdout(episode_N: np.ndarray) -> np.ndarray:
    """(N,) bool, True in every `HOLDOUT_EVERY`-th episode by rank."""
    rank_N = np.unique(episode_N, return_inverse=True)[1]
    return rank_N % HOLDOUT_EVERY == HOLDOUT_EVERY - 1
