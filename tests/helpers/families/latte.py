"""Latte, whose blocks look at the tokens of a frame and at those of a place in turn."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import DDIMScheduler

from tests.helpers.families.family import ADALN_SINGLE, Family
from tests.helpers.families.parts import build_vae
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_latte() -> Any:
    transformer = diffusers.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=128,
        video_length=3,
    )
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02, clip_sample=False)
    return diffusers.LattePipeline(build_tokenizer(), build_text_encoder(), build_vae(4), transformer, scheduler)


FAMILY = Family(
    build_latte,
    (64, 32),
    (3, 4, 2),
    ADALN_SINGLE,
    arguments={},
    frames=3,
)
