"""Stable Diffusion 3.5, whose first block has a second attention."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from transformers import CLIPTextModelWithProjection

from tests.helpers.families.family import JOINT, Family
from tests.helpers.families.parts import TEXT, build_clip, build_vae
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_sd3(scheduler: FlowMatch | None = None, in_channels: int = 4, latent_channels: int = 4) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=latent_channels,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        caption_projection_dim=32,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler or FlowMatch(shift=3.0),
        vae=build_vae(3, latent_channels, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=build_clip(CLIPTextModelWithProjection),
        tokenizer=build_tokenizer(),
        text_encoder_2=build_clip(CLIPTextModelWithProjection),
        tokenizer_2=build_tokenizer(),
        text_encoder_3=build_text_encoder(),
        tokenizer_3=build_tokenizer(),
    )


FAMILY = Family(build_sd3, (32, 16), (4, 2), JOINT)
