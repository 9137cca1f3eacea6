"""Sizes of published image-text models, so that a training can be planned where nothing of the hub is at hand."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

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
"""Hub id -> its config.json as far as sizes go; a test holds that the number of parameters is the published one."""


def known_config(source: str) -> PretrainedConfig:
    """The config of one of these."""
    return AutoConfig.for_model(**KNOWN[source])
