"""Prepares the parts of a VLM policy before a stage trains it: the model's files, and action tokens fitted on its
data."""

from typing import Callable

import numpy as np

from tap_ray import storage
from tap_ray.dataset.layout import ACTION
from tap_ray.dataset.norm_stats import NormStats
from tap_ray.dataset.reader import DatasetInfo, read_episodes
from tap_ray.models.fast import FastTokenizer, fit_fast, load_fast, report
from tap_ray.models.other_projects import fitted
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vlm import VlmParts
from tap_ray.models.vlm_files import read_files

FITTED_ON = 50_000
"""Largest number of chunks that action tokens are fitted on; more change no merge that matters."""


def new_parts(policy: PolicyConfig, action_NHA: Callable[[], np.ndarray], norm: NormStats) -> VlmParts | None:
    """The files of the model that `policy.vlm` names, and the action tokens of a head of kind "tokens"; None without a
    VLM.

    Args:
        policy: the policy's config, with the sizes of the data.
        action_NHA: returns the chunks on which action tokens are fitted, physical units.
        norm: statistics that normalize them.

    Raises:
        CheckpointError: the model or the published tokenizer is missing or of another kind.
        ConfigError, DataError: see `fit_fast`.
    """
    if not policy.vlm.pretrained:
        return None
    files = fitted(read_files(policy.vlm.pretrained), policy.vlm)
    actions = _action_tokens(policy, norm.action.normalize(action_NHA())) if policy.head == "tokens" else None
    return VlmParts(files=files, actions=actions)


def _action_tokens(policy: PolicyConfig, action_NHA: np.ndarray) -> FastTokenizer:
    """The published tokenizer, or one fitted on these normalized chunks; says what it loses and what it takes."""
    if policy.tokens.pretrained:
        sizes = {"horizon": policy.chunk, "num_actions": policy.num_actions}
        tokenizer = load_fast(storage.to_path(policy.tokens.pretrained), **sizes)
    else:
        tokenizer = fit_fast(action_NHA, policy.tokens)
    print(report(tokenizer, action_NHA))
    return tokenizer


def chunks_of(dataset: DatasetInfo, episodes: np.ndarray, horizon: int) -> np.ndarray:
    """(N, H, A) float32 action chunks of a dataset, physical units, without its images; past an episode's end the last
    action is repeated, as in its windows."""
    found, num = [], 0
    for episode in read_episodes(dataset, episodes, [ACTION]):
        step_TH = np.minimum(np.arange(len(episode))[:, None] + np.arange(horizon), len(episode) - 1)
        found.append(episode.action[step_TH])
        num += len(episode)
        if num >= FITTED_ON:
            break
    return np.concatenate(found)[:FITTED_ON]
