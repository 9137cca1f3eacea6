"""FAST: an action chunk as a few tokens (arXiv 2501.09747). N batch, H steps, A action slots, V tokens.

    chunk (H, A) --DCT over time--> coefficients --x scale, rounded--> whole numbers --low frequencies first, all slots
    of one frequency side by side--> one character each --byte-pair encoding--> tokens

The file format is that of the published tokenizer (`physical-intelligence/fast` on the hub): tokenizer.json and
processor_config.json, so either library reads the other's. Its Python file is never run; this file does the same.

Two kinds of tokenizer.json are read. The published one works on bytes: a character from 128 on is two bytes of UTF-8,
and a token may end in the middle of one. Tokenizers fitted here work on characters, so any order of tokens decodes, and
characters are not split into words as in text (the published one never joins a digit with a letter).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, trainers

from tap_ray import storage
from tap_ray.errors import CheckpointError, ConfigError, DataError
from tap_ray.runs import read_json, write_json

TOKENIZER, ABOUT = "tokenizer.json", "processor_config.json"


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Settings of the action tokens of a head of kind "tokens"."""

    pretrained: str = ""
    """Local folder of a FAST tokenizer, e.g. a copy of physical-intelligence/fast; empty: fitted on the dataset."""
    vocabulary: int = 1024
    """Tokens of a fitted tokenizer (the published code's default)."""
    scale: float = 10.0
    """Quantization steps of a coefficient in one unit of normalized action; larger values are more exact and need more
    tokens. The default is the paper's."""


def dct_matrix(num: int) -> np.ndarray:
    """(num, num) float64, orthonormal: row k is the cosine of frequency k (DCT-II), so its transpose is the inverse."""
    frequency, step = np.arange(num)[:, None], np.arange(num)[None]
    rows = np.cos(np.pi * frequency * (2 * step + 1) / (2 * num)) * np.sqrt(2 / num)
    rows[0] /= np.sqrt(2)
    return rows


class FastTokenizer:
    """Normalized action chunks <-> token ids."""

    def __init__(self, bpe: Tokenizer, *, scale: float, min_token: int, horizon: int, num_actions: int) -> None:
        """
        Args:
            bpe: characters <-> tokens.
            scale: see `TokensConfig`.
            min_token: the integer that character 0 stands for.
            horizon: steps of a chunk (H).
            num_actions: slots of an action (A).
        """
        self.bpe, self.scale, self.min_token = bpe, scale, min_token
        self.horizon, self.num_actions = horizon, num_actions
        self.num_tokens = bpe.get_vocab_size()
        self.bytes = token_bytes(bpe)
        self._dct = dct_matrix(horizon)
        self._known = known_characters(self.bytes)

    @property
    def num_numbers(self) -> int:
        """Coefficients of one chunk, H * A."""
        return self.horizon * self.num_actions

    def numbers(self, action_NHA: np.ndarray) -> np.ndarray:
        """(N, H, A) int64 rounded coefficients, lowest frequency first, within what the tokenizer can write."""
        rounded = np.around(self._dct @ action_NHA.astype(np.float64) * self.scale).astype(np.int64)
        low, high = self._known
        return np.clip(rounded, self.min_token + low, self.min_token + high)

    def encode(self, action_NHA: np.ndarray) -> list[list[int]]:
        """Token ids of each chunk."""
        texts = ["".join(map(chr, one.ravel())) for one in self.numbers(action_NHA) - self.min_token]
        return [one.ids for one in self.bpe.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, H, A) float32 normalized actions.

        Raises:
            DataError: the tokens do not decode to a whole chunk; see `Allowed`.
        """
        chunks = [self._numbers_of(row) for row in tokens]
        coefficients = np.stack(chunks).reshape(-1, self.horizon, self.num_actions) / self.scale
        return (self._dct.T @ coefficients).astype(np.float32)

    def _numbers_of(self, tokens: Sequence[int]) -> np.ndarray:
        raw = b"".join(self.bytes[token] for token in tokens)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = ""
        if len(text) != self.num_numbers:
            raise DataError(
                f"{len(tokens)} action tokens decode to {len(text)} numbers, but a chunk of {self.horizon} steps with "
                f"{self.num_actions} slots has {self.num_numbers}."
            )
        return np.array([ord(letter) for letter in text], np.int64) + self.min_token

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and processor_config.json."""
        storage.make_folder(folder)
        storage.write(folder / TOKENIZER, self.bpe.to_str().encode())
        sizes = {"scale": self.scale, "min_token": self.min_token, "vocab_size": self.num_tokens}
        shape = {"time_horizon": self.horizon, "action_dim": self.num_actions}
        write_json(folder / ABOUT, {"processor_class": "UniversalActionProcessor", **sizes, **shape})


def load_fast(folder: Path, *, horizon: int, num_actions: int) -> FastTokenizer:
    """Read a FAST tokenizer, ours or the published one, for chunks of this size. Runs none of its code.

    Raises:
        CheckpointError: the files are missing, or were made for chunks of another size.
    """
    for name in (TOKENIZER, ABOUT):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} contains no FAST tokenizer: {name} is missing. Give a local folder, e.g. a download of "
                "physical-intelligence/fast."
            )
    about = read_json(folder / ABOUT, needs=("scale", "min_token"))
    for key, have in (("time_horizon", horizon), ("action_dim", num_actions)):
        if about.get(key) not in (None, have):
            raise CheckpointError(
                f"{folder} was made for {key} {about[key]}, but this policy has {have}. Omit "
                "--policy.tokens.pretrained."
            )
    try:
        bpe = Tokenizer.from_str(storage.read(folder / TOKENIZER).decode())
    except Exception as error:  # noqa: BLE001  the tokenizers library raises nothing narrower
        raise CheckpointError(f"{folder / TOKENIZER} cannot be read: {error}") from None
    sizes = {"horizon": horizon, "num_actions": num_actions}
    return FastTokenizer(bpe, scale=float(about["scale"]), min_token=int(about["min_token"]), **sizes)


def fit_fast(action_NHA: np.ndarray, config: TokensConfig) -> FastTokenizer:
    """A tokenizer of characters, fitted on normalized action chunks.

    Raises:
        ConfigError: the vocabulary has no room for every number that occurs.
        DataError: there are no chunks, or they contain NaN or infinity.
    """
    if not len(action_NHA) or not np.isfinite(action_NHA).all():
        raise DataError(
            f"Action tokens need finite action chunks to fit on; got {len(action_NHA)} chunks, or numbers that are "
            "not finite."
        )
    _, horizon, num_actions = action_NHA.shape
    numbers = np.around(dct_matrix(horizon) @ action_NHA.astype(np.float64) * config.scale).astype(np.int64)
    low, high = int(numbers.min()), int(numbers.max())
    if high - low + 1 > config.vocabulary:
        raise ConfigError(
            f"The actions take {high - low + 1} different numbers at scale {config.scale:g}, but the vocabulary has "
            f"only {config.vocabulary} tokens. Raise --policy.tokens.vocabulary, or lower --policy.tokens.scale."
        )
    bpe = Tokenizer(models.BPE())
    bpe.decoder = decoders.Fuse()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=[chr(number) for number in range(high - low + 1)],
    )
    bpe.train_from_iterator(("".join(map(chr, one.ravel())) for one in numbers - low), trainer)
    return FastTokenizer(bpe, scale=config.scale, min_token=low, horizon=horizon, num_actions=num_actions)


def token_bytes(bpe: Tokenizer) -> list[bytes]:
    """The UTF-8 bytes of each token, by id."""
    vocabulary = bpe.get_vocab(with_added_tokens=True)
    on_bytes = "ByteLevel" in json.dumps(json.loads(bpe.to_str()).get("decoder") or {})
    written = {char: byte for byte, char in byte_letters().items()} if on_bytes else {}
    found = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        letters = [written.get(letter) for letter in token]
        known = bool(letters) and None not in letters
        found[number] = bytes(letters) if known else token.encode()  # pyright: ignore[reportArgumentType]
    return found


def byte_letters() -> Mapping[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}


def known_characters(tokens: Iterable[bytes]) -> tuple[int, int]:
    """The lowest and the highest code point that these tokens can write together, without a gap from the lowest on."""
    single = {one[0] for one in tokens if len(one) == 1}
    whole = {ord(text) for text in _letters(tokens)}
    rests = {byte for byte in single if 0x80 <= byte < 0xC0}
    spelt = {(lead & 0x1F) << 6 | (rest & 0x3F) for lead in single if 0xC2 <= lead <= 0xDF for rest in rests}
    known = whole | spelt
    low = min(known)
    return low, next(point for point in range(low, max(known) + 2) if point + 1 not in known)


def _letters(tokens: Iterable[bytes]) -> Iterator[str]:
    for token in tokens:
        try:
            text = token.decode()
        except UnicodeDecodeError:
            continue
        if len(text) == 1:
            yield text


@dataclass(frozen=True, kw_only=True)
class FastReport:
    """Length and error of a tokenizer on action chunks."""

    mean_tokens: float
    """Mean number of tokens per chunk."""
    most_tokens: int
    num_numbers: int
    rms_error: float
    """Root mean square error of encoding and decoding, in units of normalized action."""
    clipped: float
    """Share of numbers outside the range that the tokenizer can represent."""
    num_tokens: int
    """Size of the vocabulary."""

    def __str__(self) -> str:
        return (
            f"Action tokens: {self.mean_tokens:.1f} tokens per chunk of {self.num_numbers} numbers (at most "
            f"{self.most_tokens}), {self.num_tokens} in the vocabulary; round-trip error {self.rms_error:.4f} of a "
            f"normalized action, {100 * self.clipped:.2g} % of the numbers clipped."
        )


def report(tokenizer: FastTokenizer, action_NHA: np.ndarray) -> FastReport:
    """Measure tokens per chunk and round-trip error on normalized chunks."""
    tokens = tokenizer.encode(action_NHA)
    lost = tokenizer.decode(tokens) - action_NHA
    rounded = np.around(dct_matrix(tokenizer.horizon) @ action_NHA.astype(np.float64) * tokenizer.scale)
    return FastReport(
        mean_tokens=float(np.mean([len(row) for row in tokens])),
        most_tokens=max(map(len, tokens)),
        num_numbers=tokenizer.num_numbers,
        rms_error=float(np.sqrt(np.mean(lost**2))),
        clipped=float(np.mean(rounded != tokenizer.numbers(action_NHA))),
        num_tokens=tokenizer.num_tokens,
    )
