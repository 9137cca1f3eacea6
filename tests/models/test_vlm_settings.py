"""Settings of an image-text model that change how it computes: what the head reads, padding, attention."""

from pathlib import Path

import pytest
import torch

from tap_ray.bounds import check
from tap_ray.errors import ConfigError
from tap_ray.models.build import PolicyBundle, load_bundle, save_bundle
from tap_ray.models.policy import PolicyConfig, plain
from tap_ray.models.prompt import instruction_tokenizer, prompt
from tap_ray.models.vlm_config import FLASH, VlmConfig
from tap_ray.planning import shapes
from tap_ray.pretrain.from_play import FromPlay, ObjectiveConfig
from tap_ray.training.loop import TrainConfig, fit
from tap_ray.training.session import TrainJob, work
from tap_ray.training.stage import Stage
from tests.models.test_vlm import KINDS, batch_for, made, rows_of
from tests.moving_square import SPEC, square_stats, square_windows
from tests.tiny_vlm import tiny_vlm


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: tiny_vlm(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["regression", "flow", "tokens"])
def test_a_head_that_reads_all_layers_begins_with_their_mean(kind: str, head: str, sources: dict[str, str]):
    policy, last = (made(sources[kind], head, head_layers=layers) for layers in ("all", "last"))
    given = prompt(policy.parts.files, rows_of(batch_for(policy)), query=policy.words.first)
    with torch.no_grad():
        found = last.eval().model(**last.arguments(given), output_hidden_states=True).hidden_states[1:]
        assert len(found) == 2, "one behind each layer"
        expected = torch.stack(
            [
                (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
                for hidden in found
            ]
        ).mean(0)
        assert torch.allclose(policy.eval().hidden_states(given, None), expected, atol=1e-5)
    out = policy.train()(batch_for(policy))
    (out["pred"] if "pred" in out else out["action"].square().mean()).backward()
    assert policy.mix.logit.grad is not None
    assert policy.mix.logit.grad.abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["regression", "tokens"])
def test_padded_prompts_give_the_same_actions(kind: str, head: str, sources: dict[str, str]):
    padded, policy = (made(sources[kind], head, pad_tokens=number).eval() for number in (32, 1))
    batch, query = batch_for(policy), policy.words.first
    lengths = [
        prompt(policy.parts.files, rows_of(batch), query=query, multiple=m)["input_ids"].shape[1] for m in (1, 32)
    ]
    assert lengths[0] % 32 != 0 == lengths[1] % 32
    with torch.no_grad():
        assert torch.allclose(padded(batch)["action"], policy(batch)["action"], atol=1e-5)


def test_eager_attention_is_that_of_sdpa(sources: dict[str, str]):
    eager, sdpa = (made(sources["qwen2_5_vl"], attention=kind).eval() for kind in ("eager", "sdpa"))
    assert [each.model.language_model.config._attn_implementation for each in (eager, sdpa)] == ["eager", "sdpa"]
    with torch.no_grad():
        assert torch.allclose(eager(batch_for(eager))["action"], sdpa(batch_for(sdpa))["action"], atol=1e-5)


def test_flash_attention_is_refused_only_where_it_would_train(sources: dict[str, str], tmp_path: Path):
    """A policy that was trained with it is built, planned, saved and loaded without it, and acts."""
    policy = made(sources["qwen2_5_vl"], attention=FLASH).eval()
    tokenizer = instruction_tokenizer(policy.parts.files)
    bundle = PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=tokenizer)
    save_bundle(tmp_path / "final", bundle)
    again = load_bundle(tmp_path / "final").network
    usual = made(sources["qwen2_5_vl"]).eval()
    assert again.config.vlm.attention == FLASH
    assert again.model.language_model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(again(batch_for(again))["action"], usual(batch_for(usual))["action"])
    planned = shapes.whole_policy(policy.config, policy.parts)
    assert planned.model.language_model.config._attn_implementation == "sdpa"

    stage = Stage(model=bundle, objective=FromPlay(config=ObjectiveConfig(), policy=policy), held_out=(), lr_scale={})
    job = TrainJob(
        run=tmp_path, build=lambda: stage, batches=lambda **_: square_windows(0), config=TrainConfig(steps=1)
    )
    with pytest.raises(
        ConfigError,
        match=r"--policy\.vlm\.attention flash_attention_2 needs the package flash-attn and a GPU, .* Give "
        r"--policy\.vlm\.attention auto",
    ):
        work(job)


class Watched(FromPlay):
    """Learns, and lists whether autocast caches copies of the weights."""

    def loss(self, model, batch):
        CACHED.append(torch.is_autocast_cache_enabled())
        return super().loss(model, batch)


CACHED: list[bool] = []


def test_where_layers_are_computed_again_no_copy_of_their_weights_in_bfloat16_is_kept(sources: dict[str, str]):
    """Otherwise the backward pass needs the copies in any case. The step is the same."""
    learned = []
    CACHED.clear()
    for again in (True, False):
        policy = made(sources["qwen2_5_vl"], context="goal", checkpoint_activations=again)
        objective = Watched(config=ObjectiveConfig(next_object=0.0, inverse_dynamics=1.0), policy=policy)
        fit(policy, square_windows(0, batch=4), objective, TrainConfig(steps=2, batch_size=4, bf16="on"))
        learned.append(policy.state_dict())
    assert CACHED == [False, False, True, True]
    assert all(torch.equal(value, learned[1][name]) for name, value in learned[0].items())


def test_the_new_settings_of_a_vlm_do_not_rename_runs():
    plainly = plain(PolicyConfig(vlm=VlmConfig(pretrained="x")))["vlm"]
    before = "pretrained weights smolvla freeze lora_rank lora_alpha dtype attention checkpoint_activations"
    assert list(plainly) == before.split()
    used = VlmConfig(pretrained="x", head_layers="all", pad_tokens=32)
    assert plain(PolicyConfig(vlm=used))["vlm"] == plainly | {"head_layers": "all", "pad_tokens": 32}
    with pytest.raises(ConfigError, match=r"--vlm\.pad-tokens must be at least 1; got 0"):
        check(PolicyConfig(vlm=VlmConfig(pretrained="x", pad_tokens=0)))
