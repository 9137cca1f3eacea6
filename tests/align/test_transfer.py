"""What Stage 2 takes over from Stage 1, for every pair of the two."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tap_ray.align.transfer import freeze, init_from, learning_rates
from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import PolicyBundle, save_bundle
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.policy import TapPolicy
from tap_ray.models.reach import NUM_REACH
from tap_ray.training.optim import adamw
from tests.contexts import batch_with, policy_with
from tests.moving_square import SPEC, square_stats
from tests.small import SMALL

SEES = {"vision", "join", "keypoints", "glimpse"}
ACTS = {"context_in", "readout"}
FLOW = {"head": "flow", "prior": PriorConfig(chunk=2, width=32, num_layers=1, num_heads=2), "num_motion_states": 7}
SPOKEN = {"language", "sentence", "action_scale"}


def stage_1(folder: Path, *context: str, **config) -> Path:
    """A saved policy that has been trained a little, so that running statistics are its own."""
    policy = policy_with(*context, seed=7, num_reach=NUM_REACH if "crops" in context else 0, **config)
    policy.set_norm(square_stats())
    if "crops" in context:
        policy.reach_scale.set([0.0] * NUM_REACH, [0.3] * NUM_REACH)
    policy(batch_with(*context))
    save_bundle(folder / "final", PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=None))
    return folder


def spoken(*more: str, **config) -> TapPolicy:
    policy = policy_with("language", *more, seed=1, **config)
    policy.action_scale.set([0.01] * 7, [0.02] * 7)
    return policy


def parts_of(transfer) -> dict[str, set[str]]:
    return {role: {name.split(".")[0] for name in getattr(transfer, role)} for role in ("loaded", "new", "unused")}


INVERSE = {"pair", "pair_out"}
REACH = {"reach", "reach_scale"}
WITH_REACH = {"num_reach": NUM_REACH}


@pytest.mark.parametrize(
    ("source", "more", "config", "loaded", "new", "unused"),
    [
        (["goal"], [], {}, SEES, SPOKEN | ACTS | {"head"}, {"action_scale", *INVERSE}),
        (["crops"], [], {}, SEES | ACTS | {"head"}, SPOKEN, {"action_scale", "crops", *REACH}),
        (["crops"], [], WITH_REACH, SEES | ACTS | {"head", *REACH}, SPOKEN, {"action_scale", "crops"}),
        (["crops"], ["crops"], WITH_REACH, SEES | ACTS | {"head", "crops", *REACH}, SPOKEN, {"action_scale"}),
        (
            ["crops", "goal"],
            ["crops"],
            WITH_REACH,
            SEES | ACTS | {"head", "crops", *REACH},
            SPOKEN,
            {"action_scale", *INVERSE},
        ),
        (["goal"], ["crops"], {}, SEES, SPOKEN | ACTS | {"head", "crops"}, {"action_scale", *INVERSE}),
        (["crops"], [], FLOW, SEES | ACTS, SPOKEN | {"head"}, {"action_scale", "head", "crops", *REACH}),
        (["goal"], [], FLOW, SEES, SPOKEN | ACTS | {"head"}, {"action_scale", *INVERSE}),
        (
            ["crops"],
            [],
            {**FLOW, "history": 2},
            SEES | ACTS,
            SPOKEN | {"head", "history_in"},
            {"action_scale", "head", "crops", *REACH},
        ),
    ],
    ids=[
        "goal to language",
        "crops to language",
        "crops to language with reach",
        "crops to language and crops",
        "crops and goal to language and crops",
        "goal to language and crops",
        "crops to flow",
        "goal to flow",
        "crops to flow with history",
    ],
)
def test_what_is_loaded_what_is_new_and_what_is_unused(source, more, config, loaded, new, unused, tmp_path: Path):
    run, policy = stage_1(tmp_path, *source), spoken(*more, **config)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    transfer = init_from(policy, run)
    assert parts_of(transfer) == {"loaded": loaded, "new": new, "unused": unused}
    after = policy.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in transfer.new)
    original = policy_with(*source, seed=7, num_reach=NUM_REACH if "crops" in source else 0)
    original(batch_with(*source))
    same = [n for n in transfer.loaded if not n.startswith(("head.out", "readout.0", "reach_scale"))]
    assert all(torch.equal(after[name], original.state_dict()[name]) for name in same)
    if "reach_scale" in loaded:
        assert policy.reach_scale.scale.tolist() == pytest.approx([0.3] * NUM_REACH)
    if "readout" in loaded:
        saved = original.state_dict()["readout.0.weight"]
        assert torch.equal(after["readout.0.weight"][:, : saved.shape[1]], saved)
        assert torch.equal(
            after["readout.0.weight"][:, saved.shape[1] :], before["readout.0.weight"][:, saved.shape[1] :]
        )
    assert str(transfer).startswith("loaded: vision, join, keypoints, glimpse")


def test_the_head_predicts_the_same_meters_under_other_statistics(tmp_path: Path):
    policy = spoken()
    init_from(policy, stage_1(tmp_path, "crops"))
    old = policy_with("crops", seed=7, num_reach=NUM_REACH)
    old.set_norm(square_stats())
    read = torch.randn(3, SMALL.head_width)
    assert torch.allclose(
        policy.action_scale.unnormalize(policy.head(read)), old.action_scale.unnormalize(old.head(read)), atol=1e-6
    )


def test_the_state_is_read_the_same_under_other_statistics(tmp_path: Path):
    policy = spoken(num_state=7)
    policy.state_scale.set([0.3] * 7, [0.2] * 7)
    run = stage_1(tmp_path, "crops", num_state=7)
    init_from(policy, run)
    old = policy_with("crops", seed=7, num_reach=NUM_REACH, num_state=7)
    old.set_norm(square_stats())
    state = torch.randn(3, 7)
    have, want = (one.state_in(one.state_scale(state)) for one in (policy, old))
    assert torch.allclose(have, want, atol=1e-5)


def test_under_crops_it_does_what_stage_1_did(tmp_path: Path):
    run, policy = stage_1(tmp_path, "crops"), spoken("crops", num_reach=NUM_REACH)
    init_from(policy, run)
    old = policy_with("crops", seed=7, num_reach=NUM_REACH)
    old.set_norm(square_stats())
    old(batch_with("crops"))
    batch = batch_with("crops", number=3)
    with torch.no_grad():
        have, want = (one.action_scale.unnormalize(one.eval()(batch)["action"]) for one in (policy, old))
    assert torch.allclose(have, want, atol=1e-5)


def test_less_can_be_loaded(tmp_path: Path):
    run = stage_1(tmp_path, "crops")
    assert parts_of(init_from(spoken(), run, "vision"))["loaded"] == {"vision"}
    less = init_from(spoken("crops"), run, "all_but_head")
    assert parts_of(less)["loaded"] == SEES | {"context_in", "crops"}
    assert {"head.out.weight", "readout.0.weight"} <= set(less.new)
    with pytest.raises(ConfigError, match=r"Unknown part 'vison' to load\. Did you mean 'vision'\?"):
        init_from(spoken(), run, "vison")  # type: ignore[arg-type]


def test_only_what_was_loaded_learns_slowly(tmp_path: Path):
    policy = spoken()
    transfer = init_from(policy, stage_1(tmp_path, "goal"))
    assert learning_rates(transfer, 1.0) == {}
    optimizer = adamw(policy, lr=1.0, weight_decay=0.0, lr_scale=learning_rates(transfer, 0.1))
    name_of = {id(p): name.split(".")[0] for name, p in policy.named_parameters()}
    rate = {name_of[id(p)]: group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    slow = {name for name, one in rate.items() if one == 0.1}
    assert slow == SEES, "this Stage 1 has no head that could be loaded"


def test_frozen_parts_stay_as_they_are():
    policy = spoken()
    freeze(policy, ("vision", "keypoints"))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.train()(batch_with("language"))["action"].sum().backward()
    assert all(p.grad is None for part in (policy.vision, policy.keypoints) for p in part.parameters())
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"join", "glimpse"}, "their running statistics"
    with pytest.raises(ConfigError, match=r"Cannot freeze 'visoin'\. Did you mean 'vision'\?"):
        freeze(policy, ("visoin",))


def test_what_does_not_fit_is_named(tmp_path: Path):
    run = stage_1(tmp_path / "run", "crops")
    with pytest.raises(CheckpointError, match=r"nothing/final contains no policy"):
        init_from(spoken(), tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"run does not fit this model:\n.*has shape"):
        init_from(spoken(map_width=8), run)
    config = run / "final" / "policy.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "goal_stem": 1}))
    with pytest.raises(ConfigError, match="unknown key 'goal_stem'"):
        init_from(spoken(), run)
    weights = stage_1(tmp_path / "cut", "goal") / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="truncated"):
        init_from(spoken(), tmp_path / "cut")


def test_a_longer_chunk_goes_on_with_stage_1s_last_step(tmp_path: Path):
    policy = spoken(chunk=4, num_reach=0)
    init_from(policy, stage_1(tmp_path, "crops"))
    rows = policy.head.out.weight.detach().unflatten(0, (4, -1))
    assert torch.equal(rows[3], rows[1])
    assert torch.equal(rows[2], rows[1])
    assert not torch.equal(rows[1], rows[0])
    assert replace(policy.config, chunk=2) == replace(spoken().config, chunk=2)
