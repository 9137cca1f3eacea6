"""Encodes instructions: sentences -> token ids -> (U, L, C) features. U sentences, L words, C channels.

A tiny BERT over whole words trains from scratch with the policy; its vocabulary comes from the dataset's own
instructions. Alternatively, model and tokenizer come from a checkpoint (a local path or a hub id).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, PretrainedConfig

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.vision import freeze_unused

PAD, UNKNOWN = "[PAD]", "[UNK]"


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Settings of the text encoder."""

    kind: Literal["words", "pretrained", "none"] = "words"
    """"words": tiny BERT over whole words, from scratch; "pretrained": a checkpoint with its tokenizer; "none": the
    network of "words", to which all instructions look the same (ablation of language)."""
    width: int = 64
    """Channels of the tiny BERT."""
    num_layers: int = 1
    """Layers of the tiny BERT; 0: word and position embeddings only."""
    pretrained: str = ""
    """Local folder or hub id for kind "pretrained"."""
    frozen: bool = False
    """Whether its weights are frozen."""


def word_tokenizer(sentences: Sequence[str]) -> Tokenizer:
    """A tokenizer of lower-case whole words, those of `sentences` in alphabetic order; any other word is [UNK]."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    words = sorted({word for s in sentences for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(s.lower())})
    vocabulary = {word: i for i, word in enumerate([PAD, UNKNOWN, *words])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    return tokenizer


def blind_tokenizer() -> Tokenizer:
    """A tokenizer to which every instruction is the same single token."""
    return Tokenizer(models.WordLevel({PAD: 0, UNKNOWN: 1}, unk_token=UNKNOWN))


def pretrained_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        CheckpointError: there is no tokenizer.
    """
    try:
        return AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False).backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"Cannot load a tokenizer from {source!r}: {error}") from None


def encode(tokenizer: Tokenizer, sentences: Sequence[str], max_words: int) -> Tensor:
    """(U, L) int64 token ids; padding, which gets no attention, has the id -1.

    Raises:
        ConfigError: a sentence is too long; instructions are never truncated.
    """
    rows = [tokenizer.encode(sentence).ids for sentence in sentences]
    for sentence, row in zip(sentences, rows, strict=True):
        if len(row) > max_words:
            raise ConfigError(
                f"The instruction {sentence!r} has {len(row)} tokens, but the policy reads at most {max_words}. Use a "
                "shorter instruction, or train with a larger --policy.num-context."
            )
    return torch.tensor([row + [-1] * (max_words - len(row)) for row in rows], dtype=torch.int64)


def text_config(config: LanguageConfig, tokenizer: Tokenizer, max_words: int) -> PretrainedConfig:
    """The `transformers` config of the encoder.

    Raises:
        CheckpointError: there is no model at `config.pretrained`.
    """
    match config.kind:
        case "words" | "none":
            return BertConfig(
                vocab_size=tokenizer.get_vocab_size(),
                hidden_size=config.width,
                num_hidden_layers=config.num_layers,
                num_attention_heads=max(1, config.width // 64),
                intermediate_size=2 * config.width,
                max_position_embeddings=max_words,
                hidden_act="relu",
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                type_vocab_size=1,
            )
        case "pretrained":
            return _from_hub(AutoConfig, config.pretrained)


class TextEncoder(nn.Module):
    """Token ids -> token features."""

    def __init__(self, config: LanguageConfig, hf: PretrainedConfig, *, load_weights: bool) -> None:
        super().__init__()
        if config.kind == "pretrained" and load_weights:
            encoder = _from_hub(AutoModel, config.pretrained)
        else:
            encoder = AutoModel.from_config(hf, attn_implementation=None if config.kind == "pretrained" else "eager")
        encoder = getattr(encoder, "text_model", encoder)
        if hasattr(encoder, "pooler"):
            encoder.pooler = None
        self.encoder = encoder
        self.frozen = config.frozen
        if self.frozen:
            self.encoder.requires_grad_(False)
        self.channels: int = encoder.config.hidden_size
        freeze_unused(self.encoder, self.eval()(torch.zeros(1, 1, dtype=torch.int64)))
        self.train()

    def train(self, mode: bool = True) -> "TextEncoder":
        """A frozen encoder stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, ids_UL: Tensor) -> Tensor:
        """(U, L, C); rows at padding (id -1) are to be masked by the caller."""
        present = ids_UL >= 0
        return self.encoder(input_ids=ids_UL.clamp_min(0), attention_mask=present.long()).last_hidden_state


def _from_hub(cls: type, source: str):
    if not source:
        raise ConfigError(
            'The language encoder "pretrained" needs a local folder or a hub id in --policy.language.pretrained.'
        )
    try:
        safe = {"use_safetensors": True} if cls is AutoModel else {}
        return cls.from_pretrained(source, trust_remote_code=False, **safe)  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        where = "folder" if Path(source).is_dir() else "path or hub id"
        raise CheckpointError(f"Cannot load the {where} {source!r} as a text model: {error}") from None
