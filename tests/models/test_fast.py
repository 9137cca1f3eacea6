"""FAST action tokens: against numbers worked out by hand, scipy's transform and the published code's formulas."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from tap_ray.errors import CheckpointError, ConfigError, DataError
from tap_ray.models.fast import FastTokenizer, TokensConfig, byte_letters, dct_matrix, fit_fast, load_fast, report
from tap_ray.models.token_head import TokenHead, allowed_tokens

H, A = 4, 3


def chunks(num: int = 200, horizon: int = H, seed: int = 0) -> np.ndarray:
    """Smooth chunks of size one, the last slot a gripper."""
    rng = np.random.default_rng(seed)
    ramp = rng.normal(size=(num, 1, A)) + 0.2 * rng.normal(size=(num, 1, A)) * np.arange(horizon)[:, None]
    ramp[..., -1] = np.sign(ramp[:, :1, -1])
    return ramp.astype(np.float32)


def published(folder: Path, action_NHA: np.ndarray, *, vocabulary: int = 800) -> tuple[Path, Tokenizer]:
    """Files as the published code fits and saves them: a byte-level vocabulary whose alphabet is every number."""
    coefficients = np.around(dct(action_NHA, axis=1, norm="ortho") * 10)
    low, high = int(coefficients.min()), int(coefficients.max())
    texts = ["".join(map(chr, (one.flatten() - low).astype(int))) for one in coefficients]
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = [chr(number) for number in range(max(high - low + 1, 400))]
    trainer = BpeTrainer(vocab_size=vocabulary, min_frequency=2, show_progress=False, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer=trainer)
    folder.mkdir()
    bpe.save(str(folder / "tokenizer.json"))
    about = {"scale": 10, "min_token": low, "vocab_size": vocabulary, "action_dim": None, "time_horizon": None}
    about |= {"auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(about))
    (folder / "processing_action_tokenizer.py").write_text("raise SystemExit('ran')")
    return folder, bpe


def test_the_transform_is_scipys_and_of_two_steps_sum_and_difference():
    root = math.sqrt(0.5)
    assert dct_matrix(2) == pytest.approx(np.array([[root, root], [root, -root]]))
    values = np.random.default_rng(1).normal(size=(15, 7))
    assert dct_matrix(15) @ values == pytest.approx(dct(values, axis=0, norm="ortho"))
    assert dct_matrix(15).T @ values == pytest.approx(idct(values, axis=0, norm="ortho"))


def test_a_chunk_worked_out_by_hand():
    """Two steps (1, 0) and (1, -0.2): sums 2 and -0.2, differences 0 and 0.2, over sqrt 2, times 10, rounded."""
    action = np.array([[[1.0, 0.0], [1.0, -0.2]]], np.float32)
    other = np.array([[[0.0, 0.0], [0.0, 0.0]]], np.float32)
    tokenizer = fit_fast(np.concatenate([action, other]), TokensConfig(vocabulary=20))
    assert tokenizer.numbers(action).tolist() == [[[14, -1], [0, 1]]]
    assert tokenizer.min_token == -1
    # 14 + 1, -1 + 1, 0 + 1, 1 + 1: characters 15, 0, 1, 2 in this order, low frequency first
    assert b"".join(tokenizer.bytes[token] for token in tokenizer.encode(action)[0]) == bytes([15, 0, 1, 2])
    back = tokenizer.decode(tokenizer.encode(action))
    root = math.sqrt(0.5)
    expected = [[1.4 * root, (-0.1 + 0.1) * root], [1.4 * root, (-0.1 - 0.1) * root]]
    assert back[0] == pytest.approx(np.array(expected))


def test_rounding_is_all_that_is_lost():
    action = chunks()
    tokenizer = fit_fast(action, TokensConfig(vocabulary=400, scale=10))
    back = tokenizer.decode(tokenizer.encode(action))
    # each of the H orthonormal coefficients is off by at most half a step, 0.05
    assert np.abs(back - action).max() <= 0.05 * math.sqrt(H) + 1e-6
    statistics = report(tokenizer, action)
    assert statistics.rms_error == pytest.approx(np.sqrt(np.mean((back - action) ** 2)))
    assert statistics.mean_tokens == pytest.approx(np.mean([len(row) for row in tokenizer.encode(action)]))
    assert statistics.mean_tokens < H * A, "byte pairs join numbers"
    assert statistics.clipped == 0
    assert f"{statistics.mean_tokens:.1f} tokens per chunk of {H * A} numbers" in str(statistics)


def test_numbers_that_were_never_seen_are_the_nearest_that_were():
    action = chunks()
    tokenizer = fit_fast(action, TokensConfig(vocabulary=400))
    far = np.full((1, H, A), 50.0, np.float32)
    assert tokenizer.numbers(far).max() == tokenizer.numbers(action).max()
    assert report(tokenizer, far).clipped == pytest.approx(1 / H)  # the mean alone; the other frequencies are 0


def test_a_published_tokenizer_gives_its_own_tokens_and_its_code_is_never_run(tmp_path: Path):
    action = chunks()
    folder, bpe = published(tmp_path / "fast", action)
    tokenizer = load_fast(folder, horizon=H, num_actions=A)
    low = tokenizer.min_token
    for one, ours in zip(action, tokenizer.encode(action), strict=True):
        coefficients = np.around(dct(one.astype(np.float64), axis=0, norm="ortho") * 10).flatten()
        theirs = bpe.encode("".join(map(chr, np.maximum(coefficients - low, 0).astype(int)))).ids
        assert ours == theirs
        numbers = np.array([ord(letter) for letter in bpe.decode(theirs)]) + low
        decoded = idct(numbers.reshape(-1, A) / 10, axis=0, norm="ortho")
        assert tokenizer.decode([ours])[0] == pytest.approx(decoded, abs=1e-6)
    assert any(len(token) == 1 and token[0] >= 0x80 for token in tokenizer.bytes), "tokens may end within a character"


def test_what_is_saved_is_read_again(tmp_path: Path):
    action = chunks()
    tokenizer = fit_fast(action, TokensConfig(vocabulary=300, scale=7))
    tokenizer.save(tmp_path / "fast")
    again = load_fast(tmp_path / "fast", horizon=H, num_actions=A)
    assert again.encode(action) == tokenizer.encode(action)
    assert (again.scale, again.min_token, again.num_tokens) == (7, tokenizer.min_token, tokenizer.num_tokens)
    with pytest.raises(CheckpointError, match=r"made for time_horizon 4, but this policy has 5"):
        load_fast(tmp_path / "fast", horizon=5, num_actions=A)


def test_the_byte_table_is_gpt_2s():
    letters = byte_letters()
    assert sorted(letters) == list(range(256))
    assert (letters[0], letters[32], letters[65], letters[255]) == ("Ā", "Ġ", "A", "ÿ")


@pytest.mark.parametrize("kind", ["fitted", "published"])
def test_whatever_the_network_says_an_action_decodes(kind: str, tmp_path: Path):
    action = chunks()
    if kind == "fitted":
        tokenizer = fit_fast(action, TokensConfig(vocabulary=300))
    else:
        tokenizer = load_fast(published(tmp_path / "fast", action)[0], horizon=H, num_actions=A)
    torch.manual_seed(0)
    head = TokenHead(features=8, tokenizer=tokenizer)
    left, state = torch.full((64,), H * A), torch.zeros(64, dtype=torch.int64)
    tokens = []
    while bool((left > 0).any()):
        token, left, state = head.choose(5 * torch.randn(64, 8), left, state)
        tokens.append(token)
        assert len(tokens) <= 2 * H * A
    decoded = head.decode(torch.stack(tokens, 1))
    assert decoded.shape == (64, H, A)
    assert bool(torch.isfinite(decoded).all())
    assert len({tuple(row) for row in torch.stack(tokens, 1).tolist()}) > 32, "rows differ"


def test_only_tokens_that_leave_a_way_to_the_end_are_allowed():
    """Three numbers a chunk; tokens a, aa and aaaa: with two left aaaa is not allowed, with one left only a."""
    tokenizer = fit_fast(np.zeros((50, 2, 2), np.float32), TokensConfig(vocabulary=10))
    sizes = [len(token) for token in tokenizer.bytes]
    assert sorted(sizes) == [1, 2, 4]
    mask = allowed_tokens(tokenizer).mask_RSV[:, 0]
    for left, most in ((1, 1), (2, 2), (3, 2), (4, 4)):
        assert mask[left].tolist() == [size <= most for size in sizes]
    assert not mask[0].any()


def test_a_chunk_that_ends_early_goes_on_with_its_last_action():
    action = chunks()
    tokenizer = fit_fast(action, TokensConfig(vocabulary=300))
    head = TokenHead(features=4, tokenizer=tokenizer)
    held = torch.from_numpy(action[:2]).clone()
    held[1, 2:] = held[1, 1]
    step = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = tokenizer.encode(held.numpy())
    got = head.targets(torch.from_numpy(action[:2]), step).tolist()
    assert [[token for token in row if token >= 0] for row in got] == expected
    assert head.targets(torch.from_numpy(action[:2]), step & False).shape[0] == 2, "no step at all: the first one"


def test_mistakes_are_named(tmp_path: Path):
    action = chunks()
    with pytest.raises(ConfigError, match=r"take \d+ different numbers at scale 1000, but the vocabulary has only 300"):
        fit_fast(action, TokensConfig(vocabulary=300, scale=1000))
    with pytest.raises(DataError, match="got 0 chunks"):
        fit_fast(action[:0], TokensConfig())
    with pytest.raises(CheckpointError, match=r"contains no FAST tokenizer: tokenizer\.json is missing"):
        load_fast(tmp_path, horizon=H, num_actions=A)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "processor_config.json").write_text('{"scale": 10, "min_token": -3}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        load_fast(tmp_path, horizon=H, num_actions=A)
    tokenizer = fit_fast(action, TokensConfig(vocabulary=300))
    assert isinstance(tokenizer, FastTokenizer)
    with pytest.raises(
        DataError, match=r"2 action tokens decode to 2 numbers, but a chunk of 4 steps with 3 slots has 12"
    ):
        tokenizer.decode([[0, 1]])
