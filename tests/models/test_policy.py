"""The policy of both stages: what it looks at, under which context, with which weights."""

from dataclasses import replace

import pytest
import torch

from tap_ray import bounds
from tap_ray.errors import ConfigError
from tap_ray.models.build import new_policy
from tap_ray.models.context import CropContext
from tap_ray.models.glimpse import NUM_SEEN
from tap_ray.models.heads import masked_mse
from tap_ray.models.language import encode, word_tokenizer
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.normalizer import Normalizer
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vision import VisionConfig
from tests.contexts import SENTENCES, batch_with, only, policy_with
from tests.moving_square import SPEC, square_stats
from tests.small import SMALL

FLOW = {"head": "flow", "prior": PriorConfig(chunk=2, width=32, num_layers=1, num_heads=2), "num_motion_states": 7}


def weights_of(policy) -> set[str]:
    return {name.split(".")[0] for name in policy.state_dict()}


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_both_towers_give_chunks_and_reach(kind):
    vision = replace(SMALL.vision, kind=kind, vit_width=64, vit_layers=1, patch_px=12)
    policy = policy_with("crops", vision=vision, num_reach=13)
    out = policy(batch_with("crops"))
    assert out["action"].shape == (4, 2, 7)
    assert out["reach"].shape == (4, 13)
    assert (policy.vision.grid, len(policy.vision.channels)) == {"resnet": (6, 2), "vit": (4, 1)}[kind]


def test_the_stages_differ_by_the_context_alone():
    crops, language = weights_of(policy_with("crops")), weights_of(policy_with("language"))
    assert crops ^ language == {"crops", "language", "sentence"}
    goal = weights_of(policy_with("goal"))
    assert goal == {"action_scale", "vision", "join", "keypoints", "glimpse", "pair", "pair_out"}


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = policy_with("crops", seed=1), policy_with("crops", seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first.state_dict()[n], v) for n, v in again.state_dict().items())


def test_both_images_of_inverse_dynamics_pass_the_same_weights():
    policy, batch = policy_with("goal").eval(), batch_with("goal")
    pairs = []
    policy.pair.register_forward_pre_hook(lambda _, inputs: pairs.append(inputs[0]))
    with torch.no_grad():
        policy(batch)
        policy(batch | {"rgb": batch["goal_rgb"], "goal_rgb": batch["rgb"]})
    there, back = pairs
    assert there.shape == (4, 2 * (3 * SMALL.num_keypoints + 2 * NUM_SEEN))
    now, goal = there.chunk(2, dim=1)
    assert torch.allclose(back, torch.cat([goal, now], dim=1), atol=1e-6)
    assert not torch.allclose(now, goal, atol=1e-3)


def test_a_goal_that_is_a_row_of_the_batch_is_not_encoded_again():
    """The same pairs as with the images of the goals; a row that is its own goal is none, and costs nothing."""
    policy = policy_with("goal").eval()
    rows, batch = torch.tensor([1, 3, 3, 3]), batch_with("goal")
    shared = {**only(batch, "language"), "goal_row": rows}
    torch.testing.assert_close(policy(shared), policy({**batch, "goal_rgb": batch["rgb"][rows]}))


def test_the_tower_is_run_once_over_all_images():
    policy, batch = (
        policy_with("language", "crops", "goal", num_reach=13),
        batch_with("language", "crops", "goal", "play"),
    )
    rows, points = [], []
    policy.vision.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    policy.keypoints.register_forward_hook(lambda _, inputs, __: points.append(len(inputs[0])))
    policy(batch)
    assert rows == [4 + 4 + 2], "image and goal of four windows, two of play"
    assert points == [4 + 4 + 2 + 4 + 4], "sentence, crops, play, and the pair without any"


def test_the_first_context_gives_the_action_and_all_equal_their_own_forward():
    policy = policy_with("language", "crops", "goal", num_reach=13).eval()
    batch = batch_with("language", "crops", "goal", "play")
    with torch.no_grad():
        all_of_it = policy(batch)
        language, crops, goal = (policy(only(batch, name)) for name in ("language", "crops", "goal"))
        crops_and_goal = policy(only(batch, "crops", "goal"))
        play = policy({n.removeprefix("play_"): v for n, v in batch.items() if n.startswith("play_")})
    assert set(crops_and_goal) == {"action", "reach", "keypoint_logprob", "inverse_action"}
    assert set(goal) == {"action"}
    expected = {
        "action": language["action"],
        "reach": language["reach"],
        "crop_action": crops["action"],
        "crop_reach": crops["reach"],
        "keypoint_logprob": language["keypoint_logprob"],
        "crop_keypoint_logprob": crops["keypoint_logprob"],
        "play_keypoint_logprob": play["keypoint_logprob"],
        "inverse_action": goal["action"],
        "play_action": play["action"],
        "play_reach": play["reach"],
    }
    assert set(all_of_it) == {*expected, "sentence_context", "crop_context"}
    for name, value in expected.items():
        assert torch.allclose(all_of_it[name], value, atol=1e-5), name
    assert torch.allclose(crops_and_goal["action"], crops["action"], atol=1e-5)
    assert torch.allclose(crops_and_goal["inverse_action"], goal["action"], atol=1e-5)
    outs = [expected[name] for name in ("action", "crop_action", "inverse_action")]
    assert not torch.allclose(outs[0], outs[1], atol=1e-3)
    assert not torch.allclose(outs[1], outs[2], atol=1e-3)


def test_absent_crops_are_not_looked_at():
    policy, batch = policy_with("crops").eval(), batch_with("crops")
    torch.nn.init.normal_(policy.crops.absent)
    batch["crop_mask"] = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    dark = batch | {name: torch.zeros_like(batch[name]) for name in ("object_crop", "place_crop")}
    no_object = batch | {"object_crop": dark["object_crop"]}
    no_place = batch | {"place_crop": dark["place_crop"]}
    with torch.no_grad():
        seen, blind = policy(batch)["action"], policy(dark)["action"]
        other_object, other_place = policy(no_object)["action"], policy(no_place)["action"]
    same = [
        [torch.equal(a, b) for a, b in zip(seen, other, strict=True)] for other in (other_object, other_place, blind)
    ]
    assert same == [[False, False, True, True], [False, True, False, True], [False, False, False, True]]


def test_a_crop_context_is_the_sum_of_its_parts():
    context = CropContext(2)
    context.absent.data = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    torch.nn.init.zeros_(context.object.weight)
    torch.nn.init.zeros_(context.place.weight)
    context.object.bias.data, context.place.bias.data = torch.tensor([100.0, 200.0]), torch.tensor([1e3, 2e3])
    crop = torch.zeros(4, 12, 12, 3, dtype=torch.uint8)
    present = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    seen = context({"object_crop": crop, "place_crop": crop, "crop_mask": present})
    assert seen.tolist() == [[11, 22], [110, 220], [1001, 2002], [1100, 2200]]


def test_the_output_depends_on_goal_crops_and_instruction():
    for name, changed in (("goal", "goal_rgb"), ("crops", "object_crop"), ("crops", "place_crop")):
        policy, batch = policy_with(name).eval(), batch_with(name)
        other = batch | {changed: batch[changed].flip(0)}
        assert not torch.allclose(policy(batch)["action"], policy(other)["action"], atol=1e-5), changed
    policy, batch = policy_with("language").eval(), batch_with("language")
    other = batch | {"tokens": batch["tokens"].flip(0)}
    assert not torch.allclose(policy(batch)["action"], policy(other)["action"], atol=1e-5)


def test_padding_words_do_not_matter():
    policy, batch = policy_with("language").eval(), batch_with("language")
    short = batch | {"tokens": encode(word_tokenizer(SENTENCES), SENTENCES, 4)}  # "go to the right" has four words
    assert torch.allclose(policy(batch)["action"], policy(short)["action"], atol=1e-5)
    policy.language.encoder.embeddings.word_embeddings.weight.data[0] = 100.0
    assert torch.allclose(policy(batch)["action"], policy(short)["action"], atol=1e-5)


@pytest.mark.parametrize(
    ("has", "gets"),
    [
        (("goal",), ("goal",)),
        (("crops",), ("crops",)),
        (("crops", "goal"), ("crops", "goal")),
        (("language",), ("language",)),
        (("language", "crops"), ("language", "crops")),
        (("language", "crops"), ("language", "play")),
        (("language", "crops"), ("language", "crops", "play")),
    ],
    ids=" ".join,
)
def test_every_parameter_gets_a_gradient_from_its_stages_batch(has, gets):
    """Several workers would wait for one that does not."""
    policy, batch = policy_with(*has, num_reach=9, num_state=7), batch_with(*gets)
    out = policy(batch)
    torch.stack([value.sum() for value in out.values()]).sum().backward()
    assert [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("states", [True, False])
def test_every_parameter_of_a_flow_head_with_a_history_gets_one(states: bool):
    policy, batch = policy_with("language", **FLOW, history=2), batch_with("language")
    policy.head.set_layout(SPEC)
    past = {"past_action": torch.zeros(4, 2, 7), "past_state": torch.zeros(4, 2, 7)}
    batch |= past | {"past_mask": torch.ones(4, 2, dtype=torch.bool)}
    if states:
        batch["chunk_state"] = torch.zeros(4, 2, 7)
    out = policy(batch)
    losses = {"pred", "align", "recon"} if states else {"pred"}
    assert set(out) == losses | {"keypoint_logprob"}
    torch.stack([out[name] for name in losses]).sum().backward()
    assert [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None] == []


def test_proprioception_enters_only_when_asked():
    batch = batch_with("crops")
    moved = batch | {"state": batch["state"] + 1}
    blind = policy_with("crops").eval()
    assert torch.equal(blind(batch)["action"], blind(moved)["action"])
    feeling = policy_with("crops", num_state=7).eval()
    feeling.set_norm(square_stats())
    assert not torch.allclose(feeling(batch)["action"], feeling(moved)["action"])


def test_jitter_is_the_models_and_only_its_own_images_change():
    policy, batch = policy_with("language", "crops", num_reach=13).eval(), batch_with("language", "play")
    out = policy(batch)
    brighter = torch.tensor([[0.0, 0.1]])
    jittered, jittered_play = (
        policy(batch | {"jitter": brighter.expand(4, 2)}),
        policy(batch | {"play_jitter": brighter.expand(2, 2)}),
    )
    assert torch.allclose(jittered["play_action"], out["play_action"], atol=1e-5)
    assert not torch.allclose(jittered["action"], out["action"], atol=1e-5)
    assert torch.allclose(jittered_play["action"], out["action"], atol=1e-5)
    assert not torch.allclose(jittered_play["play_action"], out["play_action"], atol=1e-5)


def test_crops_have_the_jitter_of_their_images():
    """The object stays as bright in its crop as it is in the image: by its color it is found there."""
    context, batch = policy_with("crops").crops, only(batch_with("crops"), "crops")
    darker = torch.tensor([[-0.2, -0.1], [0.0, 0.0], [0.3, 0.1], [0.0, -0.3]])
    contrast, brightness = darker[:, :, None, None, None].unbind(1)
    crops = ("object_crop", "place_crop")
    by_hand = {name: (batch[name] - 128.0) * (1 + contrast) + 128 + 255 * brightness for name in crops}
    changed = context(batch | {"jitter": darker})
    torch.testing.assert_close(changed, context(batch | by_hand))
    assert [torch.equal(a, b) for a, b in zip(changed, context(batch), strict=True)] == [False, True, False, False]


def test_a_frozen_part_keeps_its_running_statistics_too():
    policy = policy_with("crops")
    policy.freeze("keypoints")
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.train()(batch_with("crops"))["action"].sum().backward()
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"vision", "join", "glimpse"}, (
        "the running statistics of all the others"
    )
    assert all(p.grad is None for p in policy.keypoints.parameters())


def test_normalize_and_unnormalize():
    scale = Normalizer(2)
    scale.set([1.0, -2.0], [0.5, 4.0])
    assert scale(torch.tensor([2.0, 2.0])).tolist() == [2.0, 1.0]
    assert scale.unnormalize(torch.tensor([2.0, 1.0])).tolist() == [2.0, 2.0]


def test_masked_mse_counts_only_what_exists():
    predicted = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
    target = torch.zeros(1, 2, 2)
    assert float(masked_mse(predicted, target, torch.tensor([[True, False]]))) == 5.0  # (1 + 9) / 2
    assert float(masked_mse(predicted, target, torch.tensor([[False, False]]))) == 0.0


def test_sizes_that_cannot_be():
    vision = VisionConfig(kind="vit", patch_px=10)
    with pytest.raises(ConfigError, match="The image size must be a multiple of patch_px; got 48 and 10"):
        new_policy(replace(SMALL, context=("goal",), vision=vision), seed=0)
    with pytest.raises(ConfigError, match='must name at least one of "goal", "crops" and "language"'):
        PolicyConfig(context=())
    with pytest.raises(ConfigError, match="conditioned on instructions needs a tokenizer"):
        new_policy(SMALL, seed=0)
    with pytest.raises(ConfigError, match="--num-keypoints must be at least 2; got 1"):
        bounds.check(PolicyConfig(num_keypoints=1))


def test_an_instruction_is_never_cut():
    tokenizer = word_tokenizer(SENTENCES)
    assert encode(tokenizer, SENTENCES, 4)[1].min() >= 0  # four words
    message = r"^The instruction 'go to the right' has 4 tokens, but the policy reads at most 3\. Use a shorter "
    with pytest.raises(ConfigError, match=message):
        encode(tokenizer, SENTENCES, 3)
