"""Flux, distilled for guidance or not."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from transformers import CLIPTextModel

from tests.helpers.families.family import JOINT, Family
from tests.helpers.families.parts import TEXT, build_clip, build_vae
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_flux(guidance_embeds: bool = True, in_channels: int = 16) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        pooled_projection_dim=TEXT,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = diffusers.FluxPipeline(
        scheduler=FlowMatch(use_dynamic_shifting=guidance_embeds),
        vae=build_vae(3, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=build_clip(CLIPTextModel),
        tokenizer=build_tokenizer(),
        text_encoder_2=build_text_encoder(),
        tokenizer_2=build_tokenizer(),
        transformer=transformer,
    )
    pipe.default_sample_size = 8
    return pipe


FAMILY = Family(
    build_flux,
    (32, 16),
    (4, 2),
    JOINT,
    {"guidance_scale": 2.0, "true_cfg_scale": 3.0, "negative_prompt": "a tree"},
)
