"""Parts of the newer tiny pipelines: chat tokenizers, small language models, and autoencoders with frames."""

from __future__ import annotations

from typing import Any

from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tide.scenes.pipeline import build_tokenizer

#: Hidden width of the language models.
CHAT = 16
#: Room for the system message of a chat, a word a token, and the prompt behind it.
CHAT_TOKENS = 64

# The content of a message is a text, or a list of parts with a text each.
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} "
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }} {% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
_LANGUAGE: dict[str, Any] = {
    "hidden_size": CHAT,
    "intermediate_size": CHAT,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
#: Of the vision towers, which no prompt reaches.
_VISION: dict[str, Any] = {"hidden_size": CHAT, "intermediate_size": CHAT}


def build_chat_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the bundled pipeline, with a chat template and room for a system message."""
    tokenizer = build_tokenizer(max_tokens=CHAT_TOKENS)
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def build_qwen3(n_layers: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(build_tokenizer()), num_hidden_layers=n_layers, tie_word_embeddings=True, **_LANGUAGE
        )
    )


def build_smol_lm3(n_layers: int, vocab_size: int) -> SmolLM3ForCausalLM:
    return SmolLM3ForCausalLM(
        SmolLM3Config(vocab_size=vocab_size, num_hidden_layers=n_layers, tie_word_embeddings=True, **_LANGUAGE)
    )


def build_mistral3(n_layers: int) -> Mistral3ForConditionalGeneration:
    text = {"model_type": "mistral", "vocab_size": len(build_tokenizer()), "num_hidden_layers": n_layers, **_LANGUAGE}
    vision = {
        "model_type": "pixtral",
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 16,
        "patch_size": 8,
        **_VISION,
    }
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=2, tie_word_embeddings=True)
    )


def build_qwen_vl(n_layers: int = 2) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": len(build_tokenizer()),
        "num_hidden_layers": n_layers,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        **_LANGUAGE,
    }
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": CHAT, "fullatt_block_indexes": [0], **_VISION}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
