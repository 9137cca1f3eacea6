"""Builds an image-text model's input from images, crops, goal images and instructions. N batch, L tokens.

The model's chat template says how a turn is written, its processor how images are resized and how many tokens an image
takes; both are the checkpoint's. A turn has its images first, then the instruction if there is one. Rows may have
different numbers of images and tokens: they are padded on the left, so the query token is the last one in each.
"""

import functools
from typing import Any, NamedTuple, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from tap_ray.errors import ConfigError
from tap_ray.models.batch import Batch
from tap_ray.models.vision import jittered
from tap_ray.models.vlm_files import VlmFiles

BY_TOKEN = ("attention_mask", "mm_token_type_ids", "token_type_ids")
"""Entries of a model's input with a number for each token, 0 at padding."""


class Row(NamedTuple):
    """One robot's turn."""

    images: list[np.ndarray]
    """(Y, X, 3) uint8 each."""
    text: str = ""


def instruction_tokenizer(files: VlmFiles) -> Tokenizer:
    """The model's own tokenizer, for `language.encode`."""
    tokenizer = Tokenizer.from_str(files.processor.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def sentences(files: VlmFiles, tokens_UL: Tensor) -> list[str]:
    """The instructions that `language.encode` encoded."""
    rows = [[token for token in row if token >= 0] for row in tokens_UL.tolist()]
    return [files.processor.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def require_read(files: VlmFiles, expected: Sequence[str], tokens_UL: Tensor) -> None:
    """Raise a ConfigError if an instruction would be truncated."""
    for sentence, read in zip(expected, sentences(files, tokens_UL), strict=True):
        if sentence != read:
            raise ConfigError(
                f"The model would read only {read!r} of the instruction {sentence!r}. Raise --policy.num-context (now "
                f"{tokens_UL.shape[1]} tokens)."
            )


def images(batch: Batch, name: str, jitter: str) -> list[list[np.ndarray]]:
    """For each row one image per camera, (Y, X, 3) uint8 each, with the changes of contrast and brightness of
    training."""
    extra, cameras = name.replace("rgb", "extra_rgb"), [_changed(batch[name], batch.get(jitter))]
    if extra in batch:
        changes = batch.get(jitter.replace("jitter", "extra_jitter"))
        for number, rgb_NYXC in enumerate(batch[extra].unbind(1)):
            cameras.append(_changed(rgb_NYXC, None if changes is None else changes[:, number]))
    return [list(row) for row in zip(*cameras, strict=True)]


def _changed(rgb_NYXC: Tensor, jitter_N2: Tensor | None) -> np.ndarray:
    if jitter_N2 is not None:
        rgb_NYXC = jittered(rgb_NYXC.float(), jitter_N2).round().clamp(0, 255).to(torch.uint8)
    return rgb_NYXC.cpu().numpy()


def with_crops(rgb: list[list[np.ndarray]], batch: Batch, prefix: str) -> list[Row]:
    """Each row's images with the crops that it has: of the object, then of the place."""
    jitter = batch.get(f"{prefix}jitter")
    crops = [_changed(batch[f"{prefix}{kind}_crop"], jitter) for kind in ("object", "place")]
    present = batch[f"{prefix}crop_mask"].tolist()
    rows = zip(rgb, *crops, present, strict=True)
    return [
        Row([*seen, *(crop for crop, has in zip(row_crops, mask, strict=True) if has)])
        for seen, *row_crops, mask in rows
    ]


def prompt(files: VlmFiles, rows: Sequence[Row], *, query: int, multiple: int = 1) -> dict[str, Tensor]:
    """The model's input on the CPU, with the query token at the end of each row.

    Args:
        files: the model's files.
        rows: one for each robot.
        query: id of the query token.
        multiple: L is a multiple of this number.
    """
    texts = [_written(files, len(row.images), row.text) for row in rows]
    made = files.processor(text=texts, images=[row.images for row in rows], return_tensors="np", padding=True)
    given = {name: torch.from_numpy(value) for name, value in made.items() if name != "labels"}
    ids_N1 = torch.full((len(rows), 1), query)
    given = behind(given, ids_N1, torch.ones_like(ids_N1, dtype=torch.bool), prefix=True)
    padding = {name: 0 for name in BY_TOKEN if name in given} | {"input_ids": files.processor.tokenizer.pad_token_id}
    missing = -given["input_ids"].shape[1] % multiple
    return given | {name: F.pad(given[name], (missing, 0), value=value) for name, value in padding.items()}


def behind(given: dict[str, Tensor], ids_NT: Tensor, present_NT: Tensor, *, prefix: bool = False) -> dict[str, Tensor]:
    """The same input with words appended.

    Args:
        given: from `prompt`.
        ids_NT: token ids of the words.
        present_NT: False at padding.
        prefix: whether they are part of what a model may read in both directions (PaliGemma); action tokens are not.
    """
    kinds = {"input_ids": ids_NT, "attention_mask": present_NT.long(), "mm_token_type_ids": torch.zeros_like(ids_NT)}
    kinds["token_type_ids"] = torch.full_like(ids_NT, int(not prefix))
    return given | {name: torch.cat([given[name], value], 1) for name, value in kinds.items() if name in given}


def _written(files: VlmFiles, num_images: int, text: str) -> str:
    processor: Any = files.processor
    if processor.chat_template is None:  # PaliGemma was trained on the sentence alone
        return files.image_token * num_images + text
    return _templated(processor, num_images, text)


@functools.lru_cache(maxsize=4096)
def _templated(processor: Any, num_images: int, text: str) -> str:
    content = [{"type": "image"}] * num_images + ([{"type": "text", "text": text}] if text else [])
    turn = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
