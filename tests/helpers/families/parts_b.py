"""Text encoders of single families: GLM, Llama, T5Gemma and a CLIP for long prompts."""

from __future__ import annotations

from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5GemmaConfig,
    T5GemmaModuleConfig,
)
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from tests.helpers.families.parts import TEXT
from tide.scenes.pipeline import build_tokenizer

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


def build_llama(layers: int) -> LlamaForCausalLM:
    """Shows its attention maps, as HiDream's pipeline asks for them."""
    config = LlamaConfig(vocab_size=len(build_tokenizer()), num_hidden_layers=layers, **_DECODER)
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def build_t5gemma() -> T5GemmaEncoder:
    both = T5GemmaModuleConfig(vocab_size=len(build_tokenizer()), num_hidden_layers=2, **_DECODER)
    return T5GemmaEncoder(T5GemmaConfig(encoder=both, decoder=both).encoder)


def build_long_clip(max_tokens: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=TEXT,
        max_position_embeddings=max_tokens,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return CLIPTextModelWithProjection(config)
