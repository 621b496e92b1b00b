"""Small language models that serve as text encoders, and a tokenizer with a template for chats."""

from __future__ import annotations

from typing import Any

from transformers import (
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5GemmaConfig,
    T5GemmaModuleConfig,
)
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

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


#: What the decoders below have in common.
_DECODER = {
    "hidden_size": TEXT,
    "intermediate_size": 2 * TEXT,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}


def build_glm() -> GlmModel:
    return GlmModel(GlmConfig(vocab_size=len(build_tokenizer()), num_hidden_layers=2, **_DECODER))


def build_llama_with_head(layers: int) -> LlamaForCausalLM:
    """Shows its attention maps, as HiDream's pipeline asks for them."""
    config = LlamaConfig(vocab_size=len(build_tokenizer()), num_hidden_layers=layers, **_DECODER)
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def build_t5gemma() -> T5GemmaEncoder:
    both = T5GemmaModuleConfig(vocab_size=len(build_tokenizer()), num_hidden_layers=2, **_DECODER)
    return T5GemmaEncoder(T5GemmaConfig(encoder=both, decoder=both).encoder)
