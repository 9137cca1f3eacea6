"""Weights written under former names of tensors."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tap_ray.models.build import PolicyBundle, load_bundle, new_policy, save_bundle
from tap_ray.models.language import word_tokenizer
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.prior_files import TrainedPrior, load_prior, save_prior
from tap_ray.models.weights import read_tensors
from tests.contexts import SENTENCES
from tests.moving_square import SPEC, square_stats
from tests.small import SMALL

PRIOR = PriorConfig(chunk=2, width=32, num_layers=1, num_heads=2)
FLOW = replace(SMALL, context=("language", "crops"), head="flow", prior=PRIOR, num_motion_states=7)
FORMER = {
    "sentence.proj.weight": "sentence.mix.weight",
    "sentence.proj.bias": "sentence.mix.bias",
    "head.prior.encoder.pos_embed": "head.prior.encoder.place",
    "head.prior.decoder.pos_embed": "head.prior.decoder.place",
    "head.action_index": "head.action_place",
    "head.state_index": "head.state_place",
}


def rename(file: Path, names: dict[str, str]) -> None:
    tensors = load_file(file)
    assert set(names) <= set(tensors)
    save_file({names.get(name, name): value for name, value in tensors.items()}, file)


def test_a_policy_written_before(tmp_path: Path):
    tokenizer = word_tokenizer(SENTENCES)
    policy = new_policy(FLOW, seed=3, tokenizer=tokenizer)
    policy.head.set_layout(SPEC)
    save_bundle(tmp_path, PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=tokenizer))
    levels = [f"join.{{}}.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")]
    rename(tmp_path / "model.safetensors", FORMER | {name.format("proj"): name.format("mix") for name in levels})
    again = load_bundle(tmp_path).network.state_dict()
    assert list(again) == list(policy.state_dict())
    assert all(torch.equal(again[name], value) for name, value in policy.state_dict().items())
    assert "crops.place.weight" in again, "the crop of the place is called as before"


def test_a_motion_prior_written_before(tmp_path: Path):
    prior = MotionPrior(PRIOR)
    save_prior(tmp_path, TrainedPrior(network=prior, sources=[]))
    names = {f"{part}.pos_embed": f"{part}.place" for part in ("encoder", "decoder")}
    rename(tmp_path / "model.safetensors", names)
    again = load_prior(tmp_path).network
    assert torch.equal(again.encoder.pos_embed, prior.encoder.pos_embed)
    assert torch.equal(again.decoder.pos_embed, prior.decoder.pos_embed)


def test_the_optimizer_of_a_checkpoint_written_before(tmp_path: Path):
    names = ("join.mix.0.weight/exp_avg", "head.prior.encoder.place/step", "crops.place.bias/exp_avg_sq")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "optimizer.safetensors")
    assert set(read_tensors(tmp_path / "optimizer.safetensors")) == {
        "join.proj.0.weight/exp_avg",
        "head.prior.encoder.pos_embed/step",
        "crops.place.bias/exp_avg_sq",
    }
