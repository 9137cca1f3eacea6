"""Loads an image-text model of `transformers` from a folder or the hub: its network, and the processor of its input.

No code of a checkpoint is run and nothing is unpickled: weights are safetensors, trust_remote_code is off. Missing
weights are an error that names them; unused ones are reported.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from tap_ray.errors import CheckpointError, ConfigError
from tap_ray.models.vlm_config import FLASH, VlmConfig, without_flash

if TYPE_CHECKING:  # seconds of every job's start
    from transformers import PreTrainedModel

LOG = logging.getLogger(__name__)
KNOWN = "SmolVLM2, Qwen2.5-VL, Qwen3-VL or PaliGemma 2"
NAMED = 8
"""Largest number of tensors named in one message."""
LOADING = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError, SafetensorError)
"""Exceptions that `transformers` raises for invalid files."""


@dataclass(frozen=True, kw_only=True)
class VlmFiles:
    """Everything of an image-text model except its weights."""

    config: PretrainedConfig
    processor: Any
    """The processor, of class ProcessorMixin."""

    @property
    def image_token(self) -> str:
        """The token of an image in a prompt without a chat template."""
        return self.processor.image_token


def read_files(source: str) -> VlmFiles:
    """Config, tokenizer, chat template and image processor of a checkpoint, or of a policy saved from one.

    Raises:
        ConfigError: no source is given.
        CheckpointError: there is no model, it is of another kind, or a part is missing.
    """
    if not source:
        raise ConfigError("A VLM needs a local folder or a hub id in --policy.vlm.pretrained.")
    if "/" not in source and not Path(source).is_dir():
        raise CheckpointError(
            f"--policy.vlm.pretrained: {source!r} is not a folder. Give a local folder, or a hub id ORGANIZATION/NAME."
        )
    from transformers import AutoImageProcessor, AutoTokenizer  # seconds of every job's start
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    config = _load(AutoConfig, source, "an image-text model")
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise CheckpointError(
            f"{_where(source)} is a model of type {config.model_type!r}, which does not read images and text. Give an "
            f"image-text model of transformers, e.g. {KNOWN}."
        )
    tokenizer = _load(AutoTokenizer, source, "the tokenizer of an image-text model")
    images = _load(AutoImageProcessor, source, "the image processor of an image-text model", backend="pil")
    tokenizer.padding_side = "left"  # the predicted token is the last one
    if getattr(images, "do_image_splitting", False):  # one view of the whole image, at the size that the tower reads
        images.do_image_splitting, images.size = False, images.max_image_size
    return VlmFiles(config=config, processor=processor_of(source, config, tokenizer, images))


def processor_of(source: str, config: PretrainedConfig, tokenizer: Any, images: Any) -> Any:
    """The model's own processor, without its part for videos, which would need torchvision."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.models.idefics3 import Idefics3Processor

    kind: Any = Idefics3Processor if config.model_type == "smolvlm" else PROCESSOR_MAPPING.get(type(config), None)
    if kind is None:
        raise CheckpointError(
            f"transformers has no processor for models of type {config.model_type!r}. Give another model, e.g. {KNOWN}."
        )

    class ImagesOnly(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    parts = {"image_processor": images, "tokenizer": tokenizer, "chat_template": tokenizer.chat_template}
    parts |= {"video_processor": None} if "video_processor" in kind.get_attributes() else {}
    if kind is Idefics3Processor:  # one token per image feature
        look = config.vision_config
        parts["image_seq_len"] = (look.image_size // look.patch_size) ** 2 // config.scale_factor**2
    try:
        processor = ImagesOnly(**parts)
    except LOADING as error:
        raise CheckpointError(
            f"{_where(source)} ({config.model_type}): its processor cannot be built from its tokenizer and image "
            f"processor: {_message(error)}. Tested models: {KNOWN}."
        ) from None
    if tokenizer.convert_tokens_to_ids(processor.image_token) != config.image_token_id:
        raise CheckpointError(
            f"{_where(source)}: its tokenizer does not have the image token {processor.image_token!r} with the id "
            f"{config.image_token_id}. Check that tokenizer.json exists."
        )
    if processor.chat_template is None and config.model_type != "paligemma":
        raise CheckpointError(
            f"{_where(source)} has no chat template, so prompts cannot be built. Add chat_template.jinja of the "
            "published checkpoint, or give a checkpoint that was trained on instructions."
        )
    return processor


def save_files(files: VlmFiles, folder: Path) -> None:
    """Write what `read_files` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    files.config.save_pretrained(folder)
    files.processor.tokenizer.save_pretrained(folder)
    images = files.processor.image_processor.to_dict()
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil").removesuffix("Fast")
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2, sort_keys=True, default=str) + "\n")


def new_model(config: VlmConfig, files: VlmFiles, *, load_weights: bool) -> "PreTrainedModel":
    """The network without its language head; with attention "auto" where there is no flash_attention_2, see
    `require_attention`.

    Raises:
        CheckpointError: weights are missing, damaged, or of other sizes; the first ones are named.
        ConfigError: a part of the model has no such attention.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils.import_utils import is_flash_attn_2_available

    config = config if is_flash_attn_2_available() else without_flash(config)
    if config.attention not in ("auto", "eager"):  # which every model has
        _require_kind_of_attention(config.attention, files.config)
    about: dict[str, Any] = {"dtype": getattr(torch, config.dtype)}
    about |= {"attn_implementation": config.attention} if config.attention != "auto" else {}
    if config.pretrained and load_weights and config.weights == "pretrained":
        extra = {"config": files.config, "use_safetensors": True, "output_loading_info": True}
        model, loading = _load(AutoModelForImageTextToText, config.pretrained, "an image-text model", **about, **extra)
        _require_whole(config.pretrained, loading)
    else:
        try:
            model = AutoModelForImageTextToText.from_config(files.config, **about)
        except LOADING as error:
            raise CheckpointError(
                f"Cannot create a model of type {files.config.model_type!r}: {_message(error)}"
            ) from None
    return model.base_model


def _require_kind_of_attention(attention: str, config: PretrainedConfig) -> None:
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
    except ValueError as error:
        raise ConfigError(
            f"--policy.vlm.attention {attention}: {_message(error).split(' yet.')[0]} (a part of the model of type "
            f"{config.model_type!r}). Give auto, which uses sdpa in the parts that have it, or eager."
        ) from None


def require_attention(config: VlmConfig, device: torch.device) -> None:
    """Raise a ConfigError unless attention can be computed as requested on a device, in this process. Only training
    needs it: weights do not depend on it, so they are built, loaded and planned with without it."""
    from transformers.utils.import_utils import is_flash_attn_2_available

    if config.attention == FLASH and not (device.type == "cuda" and is_flash_attn_2_available()):
        raise ConfigError(
            f"--policy.vlm.attention {FLASH} needs the package flash-attn and a GPU, which this training process does "
            "not have. Give --policy.vlm.attention auto, or run `pip install flash-attn` on a machine with a GPU."
        )


def _require_whole(source: str, loading: dict[str, Any]) -> None:
    missing, left = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if missing or loading["mismatched_keys"]:
        sizes = [f"{name} {tuple(have)} for {tuple(want)}" for name, have, want in sorted(loading["mismatched_keys"])]
        raise CheckpointError(
            f"{_where(source)} does not have all weights of its model:"
            + (f"\n  missing: {_few(missing)}" if missing else "")
            + (f"\n  other sizes: {_few(sizes)}" if sizes else "")
        )
    if left:
        LOG.warning("%s has weights that its model does not use: %s", _where(source), _few(left))


def vision_tower(model: "PreTrainedModel") -> nn.Module:
    """The part that reads pixels."""
    return model.get_encoder(modality="image")


def _load(cls: Any, source: str, what: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(source, trust_remote_code=False, **options)
    except LOADING as error:
        raise CheckpointError(f"Cannot load {_where(source)} as {what}: {_message(error)}") from None


def _where(source: str) -> str:
    return f"the folder {source!r}" if Path(source).is_dir() else f"the path or hub id {source!r}"


def _message(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
