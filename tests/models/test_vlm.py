"""Image-text models as backbones: against the library's own forward pass, on tiny checkpoints of each architecture."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.build import PolicyBundle, load_bundle, new_policy, save_bundle
from tap_ray.models.fast import TokensConfig, fit_fast
from tap_ray.models.language import encode
from tap_ray.models.motion_prior import PriorConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.prompt import Row, behind, images, instruction_tokenizer, prompt, sentences, with_crops
from tap_ray.models.token_head import TokenHead
from tap_ray.models.vlm import VlmParts, VlmPolicy
from tap_ray.models.vlm_config import VlmConfig
from tap_ray.models.vlm_files import read_files, vision_tower
from tests.contexts import SENTENCES, batch_with
from tests.moving_square import SIZE, SPEC, square_stats, square_window
from tests.tiny_vlm import ARCHITECTURES, tiny_vlm

KINDS = list(ARCHITECTURES)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: tiny_vlm(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def made(source: str, head: str = "regression", context: str = "language", **vlm) -> VlmPolicy:
    """A policy on a tiny model, for the moving square."""
    config = PolicyConfig(
        image_size=SIZE,
        chunk=2,
        context=(context,),  # type: ignore[arg-type]
        head=head,  # type: ignore[arg-type]
        head_width=32,
        num_context=16,
        num_state=7,
        num_motion_states=7 if head == "flow" else 0,
        prior=PriorConfig(chunk=2, width=32),
        vlm=VlmConfig(pretrained=source, **vlm),
    )
    files = read_files(source)
    chunks = square_window(0, 0, batch=200, chunk=2, goal=True).action
    tokens = fit_fast(square_stats().action.normalize(chunks), TokensConfig()) if head == "tokens" else None
    parts = VlmParts(files=files, actions=tokens)
    policy = new_policy(config, seed=0, tokenizer=instruction_tokenizer(files), parts=parts)
    assert isinstance(policy, VlmPolicy)
    policy.set_norm(square_stats())
    return policy


def batch_for(policy: VlmPolicy, num: int = 4) -> dict[str, Tensor]:
    """A batch under the policy's context."""
    [context] = policy.config.context
    batch = batch_with(context, num=num)
    if context == "language":
        tokenizer = instruction_tokenizer(policy.parts.files)
        batch["tokens"] = encode(tokenizer, SENTENCES, policy.config.num_context)
    return batch


def rows_of(batch: dict[str, Tensor]) -> list[Row]:
    return [Row([image], SENTENCES[at % 2]) for at, image in enumerate(batch["rgb"].numpy())]


PROMPTS = {
    "qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    + 2 * ("<|vision_start|>" + 4 * "<|image_pad|>" + "<|vision_end|>")
    + "go left<|im_end|>\n<|im_start|>assistant\n",
    "smolvlm": "<|im_start|>User:"
    + 2 * ("<fake_token_around_image><global-img>" + 4 * "<image>" + "<fake_token_around_image>")
    + "go left<end_of_utterance>\nAssistant:",
    "paligemma": 32 * "<image>" + "<bos>go left\n",
}
PROMPTS["qwen3_vl"] = PROMPTS["qwen2_5_vl"]
"""Two images of 4 x 4 patches, 2 x 2 of them a word (PaliGemma: each one), and an instruction."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_what_the_models_template_says(kind: str, sources: dict[str, str]):
    files = read_files(sources[kind])
    image = batch_with("language")["rgb"][0].numpy()
    given = prompt(files, [Row([image, image], "go left"), Row([image])], query=9999)
    ids, mask = given["input_ids"], given["attention_mask"]
    assert files.processor.tokenizer.decode(ids[0, :-1]) == PROMPTS[kind]
    assert ids[:, -1].tolist() == [9999, 9999], "the query word stands last in each row"
    assert mask[0].tolist() == [1] * ids.shape[1]
    assert mask[1].tolist() == sorted(mask[1].tolist()), "padded on the left"
    tokenizer = instruction_tokenizer(files)
    assert sentences(files, encode(tokenizer, SENTENCES, 16)) == SENTENCES


def test_image_and_crops_of_a_row_have_the_same_jitter():
    batch = batch_with("crops", num=2) | {"jitter": torch.tensor([[0.5, -0.2], [0.0, 0.0]])}
    for name in ("rgb", "object_crop", "place_crop"):
        batch[name] = torch.full_like(batch[name], 100)
    batch["crop_mask"] = torch.ones(2, 2, dtype=torch.bool)
    rows = with_crops(images(batch, "rgb", "jitter"), batch, "")
    levels = [[float(image.mean()) for image in row.images] for row in rows]
    assert levels == [[35.0] * 3, [100.0] * 3]  # (100 - 128) * 1.5 + 128 - 0.2 * 255 = 35


@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_computes_what_the_library_computes(kind: str, sources: dict[str, str]):
    policy = made(sources[kind]).eval()
    given = prompt(policy.parts.files, rows_of(batch_for(policy)), query=policy.words.first)
    bare = {n: v[:, :-1] if v.shape[:2] == given["input_ids"].shape else v for n, v in given.items()}
    model = hf.AutoModelForImageTextToText.from_pretrained(sources[kind]).eval()
    with torch.no_grad():
        theirs = model(**bare, output_hidden_states=True).hidden_states[-1]
        ours = policy.hidden_states(bare, None)
        whole = policy.hidden_states(given, None)
    seen = bare["attention_mask"].bool()
    assert torch.allclose(ours[seen], theirs[seen], atol=1e-6)
    if kind != "paligemma":  # there the prompt sees the query word, too
        assert torch.allclose(whole[:, :-1][seen], theirs[seen], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_know_each_other(kind: str, sources: dict[str, str]):
    """A short instruction beside a long one is padded; it acts as it does alone."""
    policy = made(sources[kind]).eval()
    batch = batch_for(policy, num=2)
    alone = {name: value[:1] for name, value in batch.items() if name not in ("tokens", "sentence")}
    alone |= {"tokens": batch["tokens"][:1], "sentence": batch["sentence"][:1]}
    with torch.no_grad():
        assert torch.allclose(policy(batch)["action"][:1], policy(alone)["action"], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_image_words_and_state_each_change_the_action(kind: str, sources: dict[str, str]):
    policy = made(sources[kind]).eval()
    batch = batch_for(policy)
    changes = {"rgb": batch["rgb"].flip(1), "sentence": 1 - batch["sentence"], "state": batch["state"] + 1}
    with torch.no_grad():
        before = policy(batch)["action"]
        for name, value in changes.items():
            assert (policy(batch | {name: value})["action"] - before).abs().amin(0).max() > 1e-5, name


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_token_by_token_equals_the_trained_forward_pass(kind: str, layers: str, sources: dict[str, str]):
    """The kept keys and values: each token said is the likeliest allowed one of a forward pass over all of them."""
    policy = made(sources[kind], "tokens", head_layers=layers).eval()
    head, batch = policy.head, batch_for(policy)
    assert isinstance(head, TokenHead)
    with torch.no_grad():
        head.out.weight.normal_(generator=torch.Generator().manual_seed(1))
        tokens: list[Tensor] = []
        choose = head.choose

        def listening(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            made_of = choose(*given)
            tokens.append(made_of[0])
            return made_of

        head.choose = listening  # type: ignore[method-assign]
        action = policy(batch)["action"]
        token_NT = torch.stack(tokens, 1)
        rows = rows_of(batch)
        given = prompt(policy.parts.files, rows, query=policy.words.first)
        ids = torch.where(token_NT >= 0, policy.action_words(token_NT), policy.words.first)[:, :-1]
        state = policy.state_in(policy.state_scale(batch["state"]))
        hidden = policy.hidden_states(behind(given, ids, token_NT[:, :-1] >= 0), state)
        first = given["input_ids"].shape[1] - 1
        left, utf8 = torch.full((len(rows),), 14), torch.zeros(len(rows), dtype=torch.int64)
        for at in range(token_NT.shape[1]):
            again, left, utf8 = choose(hidden[:, first + at], left, utf8)
            assert torch.equal(again, token_NT[:, at])
    assert torch.equal(action, head.decode(token_NT))


def test_the_loss_of_tokens_is_their_mean_cross_entropy(sources: dict[str, str]):
    policy = made(sources["smolvlm"], "tokens")
    assert isinstance(policy.head, TokenHead)
    with torch.no_grad():
        policy.head.out.weight.zero_()  # every token is as likely
    loss = policy(batch_for(policy))["pred"].detach()
    assert float(loss) == pytest.approx(torch.tensor(float(policy.head.tokenizer.num_tokens)).log().item(), rel=1e-5)


CASES = [
    *((kind, "regression", "goal") for kind in KINDS),
    ("smolvlm", "flow", "crops"),
    ("smolvlm", "tokens", "crops"),
]


@pytest.mark.parametrize(("kind", "head", "context"), CASES)
def test_every_weight_that_is_trained_gets_a_gradient(kind: str, head: str, context: str, sources: dict[str, str]):
    """Else several workers would wait for it, and a checkpoint would miss it."""
    policy = made(sources[kind], head, context)
    out = policy(batch_for(policy))
    (out["pred"] if "pred" in out else out["action"].square().mean()).backward()
    assert [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None] == []


def test_tokens_that_were_learned_by_heart_are_said(sources: dict[str, str]):
    policy = made(sources["smolvlm"], "tokens")
    assert isinstance(policy.head, TokenHead)
    batch = batch_for(policy, num=2)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = policy(batch)["pred"]
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        action = policy.eval()(batch)["action"]
    target = policy.head.targets(policy.action_scale(batch["action"]), batch["action_mask"])
    assert torch.equal(action, policy.head.decode(target))


def test_a_goal_ends_what_can_be_told(sources: dict[str, str]):
    """Action tokens of inverse dynamics: behind the second image the last action goes on, whatever was done."""
    policy = made(sources["smolvlm"], "tokens", "goal").eval()
    batch = batch_for(policy)
    other = batch["action"].clone()
    other[:, 1] = -other[:, 1]
    assert batch["k"].tolist() == [1] * 4
    with torch.no_grad():
        assert torch.equal(policy(batch)["pred"], policy(batch | {"action": other})["pred"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stays_and_low_rank_updates_are_merged(
    kind: str, sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = made(sources[kind], freeze="vision", lora_rank=2)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # an update's second matrix starts at zero
        optimizer.zero_grad()
        policy(batch_for(policy))["action"].square().mean().backward()
        optimizer.step()
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    inside = {name for name in changed if name.startswith("model.") and ".added." not in name}
    assert {name for name in inside if ".lora_" in name}
    connector = ("connector", "multi_modal_projector")
    assert all(".lora_" in name or name.split(".")[1] in connector for name in inside)
    policy.eval()
    batch = batch_for(policy)
    tokenizer = instruction_tokenizer(policy.parts.files)
    bundle = PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=tokenizer)
    save_bundle(tmp_path / "final", bundle)
    tensors = load_file(tmp_path / "final" / "model.safetensors")
    assert not [name for name in tensors if "lora" in name or "base_layer" in name]
    monkeypatch.setitem(sys.modules, "peft", None)
    again = load_bundle(tmp_path / "final").network
    assert again.config.vlm.lora_rank == 0
    with torch.no_grad():
        assert torch.allclose(again(batch)["action"], policy(batch)["action"], atol=1e-6)


@pytest.mark.parametrize(("head", "layers"), [("regression", "last"), ("flow", "all"), ("tokens", "last")])
def test_a_saved_policy_needs_its_checkpoint_no_more(head: str, layers: str, tmp_path: Path):
    source = tiny_vlm("smolvlm", tmp_path / "vlm")
    policy = made(source, head, head_layers=layers).eval()
    if layers == "all":
        policy.mix.logit.data = torch.tensor([1.0, -1.0])
    tokenizer = instruction_tokenizer(policy.parts.files)
    save_bundle(tmp_path / "final", PolicyBundle(network=policy, spec=SPEC, norm=square_stats(), tokenizer=tokenizer))
    for file in (tmp_path / "vlm").iterdir():
        file.unlink()
    again = load_bundle(tmp_path / "final")
    batch = batch_for(policy) | {"noise": torch.zeros(4, 2, 7)}
    with torch.no_grad():
        assert torch.equal(again.network(batch)["action"], policy(batch)["action"])
    assert again.tokenizer is not None
    assert encode(again.tokenizer, SENTENCES, 16).tolist() == batch["tokens"].tolist()


@pytest.mark.parametrize("vlm", [{}, {"head_layers": "all"}, {"freeze": "vision"}, {"freeze": "all", "lora_rank": 2}])
def test_activations_that_are_computed_again_give_the_same_gradients(vlm: dict[str, Any], sources: dict[str, str]):
    grads = []
    for again in (False, True):
        policy = made(sources["qwen2_5_vl"], checkpoint_activations=again, **vlm).train()
        features: list[Tensor] = []
        vision_tower(policy.model).register_forward_hook(lambda *seen, features=features: features.append(seen[2][0]))
        policy(batch_for(policy))["action"].square().mean().backward()
        assert features[0].requires_grad == ("freeze" not in vlm), "no backward pass goes through a frozen tower"
        grads.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-7) for name in grads[0])


def test_bfloat16_weights_and_fresh_ones(sources: dict[str, str]):
    policy = made(sources["smolvlm"], dtype="bfloat16")
    assert {p.dtype for name, p in policy.model.named_parameters() if ".added." not in name} == {torch.bfloat16}
    assert policy(batch_for(policy))["action"].dtype == torch.float32
    loaded, fresh = (made(sources["smolvlm"], weights=kind) for kind in ("pretrained", "fresh"))
    name = "model.text_model.layers.0.self_attn.q_proj.weight"
    original = load_file(Path(sources["smolvlm"]) / "model.safetensors")[f"model.{name.removeprefix('model.')}"]
    assert torch.equal(loaded.state_dict()[name], original)
    assert not torch.equal(fresh.state_dict()[name], original)


def test_what_is_no_image_text_model_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"needs a local folder or a hub id in --policy\.vlm\.pretrained"):
        read_files("")
    with pytest.raises(CheckpointError, match=r"Cannot load the folder .* as an image-text model"):
        read_files(str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"'somewhere' is not a folder. Give a local folder, or a hub id ORGANIZATION/NAME"
    ):
        read_files("somewhere")
    hf.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"bert' is a model of type 'bert', which does not read images and text"):
        read_files(str(tmp_path / "bert"))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tokenizer.json", "Cannot load the folder .* as the tokenizer of an image-text model"),
        ("preprocessor_config.json", "Cannot load the folder .* as the image processor of an image-text model"),
        ("chat_template.jinja", "has no chat template, so prompts cannot be built"),
        ("model.safetensors", "Cannot load the folder .* as an image-text model"),
    ],
)
def test_a_part_that_is_missing_is_named(file: str, message: str, tmp_path: Path):
    source = tiny_vlm("qwen2_5_vl", tmp_path / "vlm")
    (tmp_path / "vlm" / file).unlink()
    with pytest.raises(CheckpointError, match=message):
        made(source)
    if file == "tokenizer.json":
        (tmp_path / "vlm" / "tokenizer_config.json").unlink()
        with pytest.raises(CheckpointError, match=r"does not have the image token '<\|image_pad\|>' with the id 6"):
            made(source)


def test_weights_that_are_missing_or_left_over_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = tiny_vlm("smolvlm", tmp_path / "vlm")
    file = tmp_path / "vlm" / "model.safetensors"
    tensors = load_file(file)
    name = "model.text_model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, "model.extra.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    made(source)
    assert "has weights that its model does not use: model.extra.weight" in caplog.text
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"does not have all weights of its model:\n  missing: {name}"):
        made(source)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"Cannot load the folder .* as an image-text model"):
        made(source)


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path):
    source = tiny_vlm("smolvlm", tmp_path / "vlm")
    about = json.loads((tmp_path / "vlm" / "config.json").read_text())
    about |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "vlm" / "config.json").write_text(json.dumps(about))
    (tmp_path / "vlm" / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="Cannot load the folder"):
        read_files(source)


def test_a_history_is_refused(sources: dict[str, str]):
    policy = made(sources["smolvlm"], "flow")
    with pytest.raises(ConfigError, match="A VLM policy does not support a history"):
        new_policy(
            replace(policy.config, history=1), seed=0, tokenizer=instruction_tokenizer(policy.parts.files),
            parts=policy.parts,
        )  # fmt: skip
