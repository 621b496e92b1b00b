"""The parts that the tiny pipelines share: autoencoders, and text encoders made from scratch."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, Gemma2Config, Gemma2Model

from tide.scenes.pipeline import MAX_CAPTION_TOKENS, build_tokenizer

#: Hidden width of the text encoders other than T5, whose width is 128.
TEXT = 32


def build_vae(stages: int, latent_channels: int = 4, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=(8,) * stages,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        mid_block_add_attention=False,
        **options,
    )


def build_clip(cls: type, max_tokens: int = MAX_CAPTION_TOKENS) -> Any:
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
    return cls(config)


def build_gemma() -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(build_tokenizer()),
            hidden_size=TEXT,
            intermediate_size=2 * TEXT,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            pad_token_id=0,
        )
    )
