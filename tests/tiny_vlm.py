"""Tiny image-text models with random weights, one of each architecture, saved as the hub has them: safetensors, the
tokenizer with its chat template (that of the published checkpoint) and the image processor. A megabyte, a second.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {
    "initializer_range": 0.2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "head_dim": 8,
}
CORPUS = [
    "put the spoon on the cloth",
    "go left",
    "go to the right",
    "lift the carrot, please",
    "user assistant system",
]

QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN_WORDS = ["<|endoftext|>", "<|im_end|>", "<|pad|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>"]
QWEN_WORDS += ["<|image_pad|>", "<|video_pad|>"]
SMOL_WORDS = ["<|endoftext|>", "<end_of_utterance>", "<|pad|>", "<|im_start|>", "<image>", "<fake_token_around_image>"]
SMOL_WORDS += ["<global-img>"]
GEMMA_WORDS = ["<bos>", "<eos>", "<pad>", "<unk>", "<image>"]


def words(special: list[str], **about: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level tokenizer; special tokens have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **about)


def qwen_words() -> hf.PreTrainedTokenizerFast:
    return words(
        QWEN_WORDS, eos_token="<|im_end|>", pad_token="<|pad|>", bos_token="<|endoftext|>", chat_template=QWEN_TEMPLATE
    )


def qwen2_5_vl(folder: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {**TEXT, "vocab_size": 400, "rope_parameters": rope, "head_dim": 8}
    look = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16}
    look |= {"patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1]}
    config = hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=look, image_token_id=6, video_token_id=7, vision_start_token_id=4
    )
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    qwen_words().save_pretrained(folder)
    _images(folder, "Qwen2VLImageProcessor", "Qwen2_5_VLProcessor", QWEN_IMAGES)


QWEN_IMAGES = {"size": {"shortest_edge": 256, "longest_edge": 1024}, "patch_size": 8, "merge_size": 2}
QWEN_IMAGES |= {"temporal_patch_size": 2, "image_mean": [0.5, 0.4, 0.4], "image_std": [0.3, 0.3, 0.3]}


def qwen3_vl(folder: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {**TEXT, "vocab_size": 400, "rope_parameters": rope}
    look = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16}
    look |= {"patch_size": 8, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    config = hf.Qwen3VLConfig(
        text_config=text,
        vision_config=look,
        image_token_id=6,
        video_token_id=7,
        vision_start_token_id=4,
        vision_end_token_id=5,
    )
    hf.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    qwen_words().save_pretrained(folder)
    _images(folder, "Qwen2VLImageProcessorFast", "Qwen3VLProcessor", QWEN_IMAGES)


def smolvlm(folder: Path) -> None:
    text = {"model_type": "llama", **TEXT, "vocab_size": 400}
    look = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.SmolVLMConfig(
        text_config=text, vision_config={**look, "image_size": 32, "patch_size": 8}, image_token_id=4, scale_factor=2
    )
    hf.SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    words(
        SMOL_WORDS,
        eos_token="<end_of_utterance>",
        pad_token="<|pad|>",
        bos_token="<|endoftext|>",
        chat_template=SMOL_TEMPLATE,
    ).save_pretrained(folder)
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    _images(folder, "SmolVLMImageProcessor", "SmolVLMProcessor", sizes, image_seq_len=4)


def paligemma2(folder: Path) -> None:
    paligemma(folder, {"model_type": "gemma2", "sliding_window": 64, "query_pre_attn_scalar": 8})


def paligemma(folder: Path, text: dict) -> hf.PaliGemmaConfig:
    """PaliGemma with this text model; the first one has a Gemma."""
    text = {**TEXT, "vocab_size": 2000, **text}
    look = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    look |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vision_use_head": False}
    config = hf.PaliGemmaConfig(
        text_config=text, vision_config=look, image_token_index=4, projection_dim=16, hidden_size=16
    )
    hf.PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    words(GEMMA_WORDS, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder
    )
    sizes = {"size": {"height": 32, "width": 32}, "image_seq_length": 16}
    _images(folder, "SiglipImageProcessor", "PaliGemmaProcessor", sizes)
    return config


def _images(folder: Path, kind: str, processor: str, sizes: dict, **about: object) -> None:
    file = {"image_processor_type": kind, "processor_class": processor, **sizes}
    (folder / "preprocessor_config.json").write_text(json.dumps(file))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor, **about}))


ARCHITECTURES: dict[str, Callable[[Path], None]] = {
    "smolvlm": smolvlm,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "paligemma": paligemma2,
}


def tiny_vlm(kind: str, folder: Path) -> str:
    """Save a tiny model of this architecture; returns the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ARCHITECTURES[kind](folder)
    return str(folder)
