import re

import numpy as np
import pytest

from tap_ray.errors import ConfigError
from tap_ray.inspect.probes import ProbeData, held_out_r2, probe, ridge


def test_ridge_by_hand():
    # x = -1, 1 standardised is itself; y = 2 x + 3: X'X = 2, X'y = 4, t = 2, so w = 4 / (2 + 2 p).
    x, y = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])
    none, one, much = ridge(x, y, np.array([[1.0]]), (0.0, 1.0, 1e9))
    assert none == pytest.approx(np.array([[5.0]]))
    assert one == pytest.approx(np.array([[4.0]]))
    assert much == pytest.approx(np.array([[3.0]]), abs=1e-6)


def frames(num_episodes=40, length=5, seed=0):
    rng = np.random.default_rng(seed)
    episode = np.repeat(np.arange(num_episodes), length)
    place = rng.normal(size=(num_episodes, 3)).repeat(length, 0)
    mix = rng.normal(size=(3, 20))
    return rng, episode, place, place @ mix


def test_a_linear_code_is_read_and_noise_is_not():
    rng, episode, place, features = frames()
    r2, num_test = held_out_r2(features, place, episode)
    assert (r2 > 0.999).all()
    assert num_test == 50
    noise, _ = held_out_r2(rng.normal(size=features.shape), place, episode)
    assert (noise < 0.2).all()


def test_known_noise_gives_the_known_r2():
    # Feature = target + noise of the same variance: the best linear guess explains one half.
    rng = np.random.default_rng(1)
    target = rng.normal(size=(8000, 1))
    r2, _ = held_out_r2(target + rng.normal(size=target.shape), target, np.arange(8000))
    assert r2[0] == pytest.approx(0.5, abs=0.04)


def test_an_episode_cannot_be_recognized():
    # The features name the episode (one-hot) and nothing else: perfect in training, worthless on unseen episodes.
    _, episode, place, _ = frames()
    r2, _ = held_out_r2(np.eye(40)[episode], place, episode)
    assert (r2 < 0.05).all()


def test_targets_and_axes():
    _, episode, place, features = frames()
    sometimes = np.where((episode % 2 == 0)[:, None], place, np.nan)
    rarely = np.where((episode < 3)[:, None], place, np.nan)
    flat = place * [1.0, 1.0, 0.0]
    data = ProbeData(
        rgb=np.empty(0),
        next_rgb=np.empty(0),
        state=np.empty(0),
        sentence=[],
        episode=episode,
        target={"gripper": flat, "carrot": sometimes, "spoon": rarely},
    )
    scores = probe(features, data)
    assert list(scores) == ["gripper", "carrot"]
    assert scores["gripper"]["x"] > 0.99
    assert "z" not in scores["gripper"]  # it never moves
    assert (scores["gripper"]["num_test"], scores["carrot"]["num_test"]) == (50, 25)
    with pytest.raises(
        ConfigError, match=re.escape("200 frames need the same number of rows of features; got shape (3, 20).")
    ):
        probe(features[:3], data)
