from dataclasses import replace

import pytest
import torch

from tap_ray.errors import ConfigError
from tap_ray.models.build import new_policy
from tap_ray.models.heads import masked_mse
from tap_ray.models.language import encode, word_tokenizer
from tap_ray.models.scale import Scale
from tap_ray.models.vision import VisionConfig
from tap_ray.training.batches import to_tensors
from tests.moving_square import square_stats, square_window
from tests.small import SMALL

CPU = torch.device("cpu")
SENTENCES = ["go left", "go to the right"]


def pair(batch: int = 3):
    return to_tensors(square_window(0, 0, batch=batch, chunk=2, goal=True), CPU)


def spoken(sentences: list[str], words: int = 8):
    batch = to_tensors(square_window(0, 0, batch=3, chunk=2, goal=False), CPU)
    tokens = encode(word_tokenizer(SENTENCES), sentences, words)
    return batch | {"tokens": tokens, "sentence": torch.tensor([0, 1, 0])}


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_both_towers_give_chunks_and_reach(kind):
    vision = replace(SMALL.vision, kind=kind, vit_width=64, vit_layers=1, patch_px=12)
    policy = new_policy(replace(SMALL, vision=vision, num_reach=6), seed=0)
    out = policy(pair())
    assert out["action"].shape == (3, 2, 7)
    assert out["reach"].shape == (3, 6)
    assert policy.vision.num_tokens == {"resnet": 9, "vit": 16}[kind]


def test_both_contexts_share_everything_but_the_context():
    goal = new_policy(SMALL, seed=0)
    language = new_policy(replace(SMALL, context="language"), seed=0, tokenizer=word_tokenizer(SENTENCES))
    shapes = [{n: tuple(p.shape) for n, p in model.state_dict().items()} for model in (goal, language)]
    differing = {n.split(".")[0] for n in {*shapes[0], *shapes[1]} if shapes[0].get(n) != shapes[1].get(n)}
    assert differing == {"goal", "mix", "language", "context_in"}


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = new_policy(SMALL, seed=1), new_policy(SMALL, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first.state_dict()[n], v) for n, v in again.state_dict().items())


def test_every_parameter_takes_part():
    policy = new_policy(replace(SMALL, num_reach=6), seed=0)
    out = policy(pair())
    (out["action"].sum() + out["reach"].sum()).backward()
    assert [name for name, p in policy.named_parameters() if p.grad is None] == []


def test_the_goal_and_the_words_matter_and_padding_does_not():
    policy = new_policy(SMALL, seed=0).eval()
    batch = pair()
    other = batch | {"goal_rgb": batch["rgb"]}
    assert not torch.allclose(policy(batch)["action"], policy(other)["action"])
    policy = new_policy(replace(SMALL, context="language"), seed=0, tokenizer=word_tokenizer(SENTENCES)).eval()
    said = policy(spoken(SENTENCES))["action"]
    assert not torch.allclose(said, policy(spoken(SENTENCES[::-1]))["action"])
    unseen = spoken(SENTENCES)
    policy.context_place.data[:, 5:] += 100.0  # both sentences are at most four words long
    assert torch.allclose(said, policy(unseen)["action"], atol=1e-5)


def test_proprioception_enters_only_when_asked():
    batch = pair()
    moved = batch | {"state": batch["state"] + 1}
    blind = new_policy(SMALL, seed=0).eval()
    assert torch.equal(blind(batch)["action"], blind(moved)["action"])
    feeling = new_policy(replace(SMALL, num_state=7), seed=0).eval()
    feeling.set_norm(square_stats())
    assert not torch.allclose(feeling(batch)["action"], feeling(moved)["action"])


def test_scale_and_its_inverse():
    scale = Scale(2)
    scale.set([1.0, -2.0], [0.5, 4.0])
    assert scale(torch.tensor([2.0, 2.0])).tolist() == [2.0, 1.0]
    assert scale.inverse(torch.tensor([2.0, 1.0])).tolist() == [2.0, 2.0]


def test_masked_mse_counts_only_what_exists():
    predicted = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
    target = torch.zeros(1, 2, 2)
    assert float(masked_mse(predicted, target, torch.tensor([[True, False]]))) == 5.0  # (1 + 9) / 2
    assert float(masked_mse(predicted, target, torch.tensor([[False, False]]))) == 0.0


def test_a_patch_that_does_not_fit_is_an_error():
    vision = VisionConfig(kind="vit", patch_px=10)
    with pytest.raises(ConfigError, match="patch_px 10 does not divide the image size 48"):
        new_policy(replace(SMALL, vision=vision), seed=0)
