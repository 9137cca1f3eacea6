"""Lists sizes of published image-text models, so that a training can be planned without access to the hub."""

from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from tap_ray.models.vlm_files import VlmFiles, processor_of

QWEN2_5_VL_3B = "Qwen/Qwen2.5-VL-3B-Instruct"
QWEN3_VL_2B = "Qwen/Qwen3-VL-2B-Instruct"
SMOLVLM2_500M = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"

_QWEN_TEXT = {"hidden_size": 2048, "num_attention_heads": 16, "vocab_size": 151936, "tie_word_embeddings": True}
_QWEN: dict[str, Any] = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
_QWEN |= {"tie_word_embeddings": True}
KNOWN: dict[str, dict[str, Any]] = {
    QWEN2_5_VL_3B: {
        **_QWEN,
        "model_type": "qwen2_5_vl",
        "text_config": {
            **_QWEN_TEXT,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
        },
    },
    QWEN3_VL_2B: {
        **_QWEN,
        "model_type": "qwen3_vl",
        "text_config": {
            **_QWEN_TEXT,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    SMOLVLM2_500M: {
        "model_type": "smolvlm",
        "image_token_id": 49190,
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "vocab_size": 49280,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    },
}
"""Hub id -> the sizes in its config.json; a test checks the number of parameters against the published one."""


def known_config(source: str) -> PretrainedConfig:
    """The config of one of these models."""
    return AutoConfig.for_model(**KNOWN[source])


TASK = "put the green spoon on the blue towel"
"""An instruction of typical length, for plans."""
_QWEN_TURN = (
    "<|im_start|>user\n{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_SMOL_TURN = (
    "<|im_start|>User:{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\nAssistant:"
)
_TURNS = {
    "qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + _QWEN_TURN,
    "qwen3_vl": _QWEN_TURN,
    "smolvlm": _SMOL_TURN,
}
"""Model type -> what the published chat template makes of one turn of images and an instruction."""
_QWEN_SPECIAL = {"<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652, "<|vision_end|>": 151653}
_QWEN_SPECIAL |= {"<|image_pad|>": 151655, "<|video_pad|>": 151656}
_SMOL_SPECIAL = {"<|im_start|>": 1, "<end_of_utterance>": 49279, "<image>": 49190, "<fake_token_around_image>": 49189}
_SMOL_SPECIAL |= {"<global-img>": 49152}


def known_files(source: str) -> VlmFiles:
    """The parts of a model's files that a plan needs: sizes of images and numbers of tokens, no vocabulary.

    Words, punctuation marks and line ends are one token each, as in the published tokenizers for words as short as
    those of an instruction.
    """
    config = known_config(source)
    smol = config.model_type == "smolvlm"
    special = _SMOL_SPECIAL if smol else _QWEN_SPECIAL
    words = ["\n", ".", ":", *f"{TASK} You are a helpful assistant user system User Assistant".split()]
    vocabulary = special | {word: 100 + number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    split = pre_tokenizers.Split(Regex(r"\w+|\n|[^\w\s]"), "removed", invert=True)
    tokenizer.pre_tokenizer = split  # type: ignore[assignment]
    about = {"eos_token": "<end_of_utterance>" if smol else "<|im_end|>", "pad_token": "<|im_start|>"}
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", chat_template=_TURNS[config.model_type], **about
    )
    fast_tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return VlmFiles(config=config, processor=processor_of(source, config, fast_tokenizer, _images(config)))


def _images(config: PretrainedConfig) -> Any:
    """The published image processor: one view of 512 px (SmolVLM2); the image's own size in whole patches (Qwen)."""
    if config.model_type == "smolvlm":
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        side = {"longest_edge": config.vision_config.image_size}
        return SmolVLMImageProcessorPil(do_image_splitting=False, size=side, max_image_size=side)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    smallest = 65536 if config.model_type == "qwen3_vl" else 3136
    size = {"shortest_edge": smallest, "longest_edge": 16777216}
    return Qwen2VLImageProcessorPil(size=size, patch_size=config.vision_config.patch_size)
