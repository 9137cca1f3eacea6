"""Stage 2's loss, each term by hand."""

import pytest
import torch

from tap_ray import bounds
from tap_ray.align.objective import BehaviorCloning, CloningWeights, instructed
from tap_ray.errors import ConfigError
from tap_ray.models.pointing import POINT_WEIGHT
from tap_ray.models.reach import NUM_REACH
from tests.contexts import batch_with, policy_with

TOKENS = torch.tensor([[3, 4, -1], [3, 5, 6], [7, -1, -1]])
ALL = CloningWeights(reach=0.5, crops=2.0, context=4.0, point=3.0, play=0.25)


class FixedOutputs(torch.nn.Module):
    """Predicts what it is given, normalized; keeps the batch that it was given."""

    def __init__(self, **out: torch.Tensor) -> None:
        super().__init__()
        self.out, self.batch = out, {}

    def forward(self, batch):
        self.batch = batch
        return self.out


def demos():
    """Two demonstrations of zeros, the second one step long and without an object's crop, and one window of play."""
    return {
        "rgb": torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        "task_index": torch.tensor([2, 0]),
        "action": torch.zeros(2, 2, 7),
        "action_mask": torch.tensor([[True, True], [True, False]]),
        "reach": torch.zeros(2, NUM_REACH),
        "reach_mask": torch.ones(2, NUM_REACH, dtype=torch.bool),
        "crop_mask": torch.tensor([[True, False], [False, True]]),
        "crop_px": torch.zeros(2, 2, 2),
        "crop_px_mask": torch.tensor([[True, False], [False, True]]),
        "play_action": torch.zeros(1, 2, 7),
        "play_action_mask": torch.tensor([[False, True]]),
        "play_reach": torch.zeros(1, NUM_REACH),
        "play_reach_mask": torch.tensor([[True] * 6 + [False] * 7]),
        "play_crop_mask": torch.tensor([[True, True]]),
        "play_rgb": torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        "play_crop_px": torch.zeros(1, 2, 2),
        "play_crop_px_mask": torch.tensor([[True, False]]),
    }


def outputs() -> dict[str, torch.Tensor]:
    """Outputs whose squares are easily told apart."""

    def steps(*values: float) -> torch.Tensor:
        return torch.tensor(values).view(-1, 2, 1).expand(-1, 2, 7)

    def looking(nats: list[list[float]]) -> torch.Tensor:
        """The first cell of 2 x 2, where everything is, costs so many nats."""
        return -torch.tensor(nats)[..., None] - torch.tensor([0.0, 50.0, 50.0, 50.0])

    by_target = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat_interleave(torch.tensor([3, 3, 3, 4]))
    return {
        "action": steps(1, 2, 3, 100),
        "reach": by_target.expand(2, NUM_REACH),
        "crop_action": steps(3, 5, 100, 100),
        "crop_reach": 2 * by_target.expand(2, NUM_REACH),
        "sentence_context": torch.tensor([[1.0, 3.0], [100.0, 100.0]]),
        "crop_context": torch.tensor([[0.0, 0.0], [0.0, 0.0]]),
        "keypoint_logprob": looking([[1.0, 100.0], [100.0, 2.0]]),
        "play_keypoint_logprob": looking([[5.0, 100.0]]),
        "play_action": steps(100, 2),
        "play_reach": by_target.expand(1, NUM_REACH),
    }


EXPECTED = {
    "loss": (1 + 4 + 9) / 3,
    "reach": (3 * 1 + 3 * 4 + 3 * 9 + 4 * 16) / 13,
    # Both rows' displacement, the first's contact and yaws, nobody's release.
    "crops": (9 + 25) / 2 + (2 * 3 * 4 + 3 * 16 + 4 * 64) / 13,
    "context": (1 + 9) / 2,
    "point": (1 + 2) / 2,
    "play_action": 4.0,
    "play_point": 5.0,
    "play_reach": (1 + 4) / 2,
}


@pytest.fixture
def policy():
    return policy_with("language", "crops", num_reach=NUM_REACH)  # its scales are the identity


def test_all_terms_by_hand(policy):
    loss, metrics = BehaviorCloning(policy=policy, tokens_UL=TOKENS, weights=ALL).loss(
        FixedOutputs(**outputs()), demos()
    )
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {f"bc/{name}": value for name, value in EXPECTED.items()}
    )
    one, play = 1.0, 0.25
    point = {"point": 3.0, "play_point": play * POINT_WEIGHT}
    factors = {"loss": one, "reach": 0.5, "crops": 2.0, "context": 4.0, "play_action": play, "play_reach": play} | point
    assert float(loss) == pytest.approx(sum(factors[name] * value for name, value in EXPECTED.items()))


def test_losses_without_weight_are_absent(policy):
    batch = {name: value for name, value in demos().items() if not name.startswith(("play_", "reach"))}
    loss, metrics = BehaviorCloning(policy=policy, tokens_UL=TOKENS).loss(
        FixedOutputs(action=outputs()["action"]), batch
    )
    assert set(metrics) == {"bc/loss"}
    assert float(loss) == pytest.approx(EXPECTED["loss"])
    assert not CloningWeights().need_crops
    assert CloningWeights(crops=0.1).need_crops
    assert CloningWeights(context=0.1).need_crops
    assert CloningWeights(point=0.1).need_crops
    with pytest.raises(ConfigError, match="--reach must be at least 0; got -1"):
        bounds.check(CloningWeights(reach=-1.0))


def test_each_sentence_is_read_once():
    given = instructed({"task_index": torch.tensor([2, 0, 2, 2])}, TOKENS)
    assert given["tokens"].tolist() == [TOKENS[0].tolist(), TOKENS[2].tolist()]
    assert given["sentence"].tolist() == [1, 0, 1, 1]
    policy, model = policy_with("language"), FixedOutputs(action=outputs()["action"])
    BehaviorCloning(policy=policy, tokens_UL=TOKENS).loss(model, demos())
    assert model.batch["sentence"].tolist() == [1, 0]


def test_the_context_loss_has_no_gradient_into_the_crops(policy):
    weights = CloningWeights(context=1.0, play=0.0)
    batch = {
        name: value for name, value in batch_with("language", "crops").items() if name not in ("tokens", "sentence")
    }
    objective = BehaviorCloning(policy=policy, tokens_UL=TOKENS, weights=weights)
    objective.loss(policy, batch)[1]["bc/context"].backward()
    moved = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"language", "sentence"}


def test_with_the_crops_term_the_crops_learn_too(policy):
    batch = {
        name: value for name, value in batch_with("language", "crops").items() if name not in ("tokens", "sentence")
    }
    objective = BehaviorCloning(policy=policy, tokens_UL=TOKENS, weights=CloningWeights(crops=1.0))
    objective.loss(policy, batch)[0].backward()
    assert policy.crops.object.weight.grad.any()
