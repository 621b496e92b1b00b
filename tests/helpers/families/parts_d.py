"""Parts that the tiny pipelines of video and audio models share: language models as text encoders, and a CLIP of the
length that pipelines pad to."""

from __future__ import annotations

from typing import Any

from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from tests.helpers.families.parts import TEXT
from tide.scenes.pipeline import build_tokenizer

#: Every message's words one after the other.
_CHAT = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"


def decoder_options(layers: int = 3) -> dict[str, Any]:
    """What the configs of small language models have in common."""
    return {
        "vocab_size": len(build_tokenizer()),
        "hidden_size": TEXT,
        "intermediate_size": 2 * TEXT,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def build_llama() -> LlamaModel:
    return LlamaModel(LlamaConfig(**decoder_options()))


def build_chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(max_tokens=256)
    tokenizer.chat_template = _CHAT
    return tokenizer


def build_long_clip() -> CLIPTextModel:
    """With places for the 77 tokens that pipelines pad to."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(build_tokenizer()),
            hidden_size=TEXT,
            intermediate_size=2 * TEXT,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=TEXT,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
