"""Mochi: clips of two latent frames."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import Family
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        pooled_projection_dim=24,
        in_channels=12,
        text_embed_dim=128,
        time_embed_dim=16,
        max_sequence_length=20,
    )
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
    )
    return diffusers.MochiPipeline(
        FlowMatch(invert_sigmas=True), vae, build_text_encoder(), build_tokenizer(), transformer
    )


FAMILY = Family(
    build_mochi,
    (64, 32),
    (2, 4, 2),
    {"msa": ("norm1.norm", "attn1"), "mlp": ("norm3.norm", "ff")},
    frames=7,
)
