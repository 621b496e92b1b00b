"""HunyuanVideo: clips of two latent frames."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from transformers import CLIPTextModel

from tests.helpers.families.family import JOINT, Family
from tests.helpers.families.parts import TEXT, build_clip
from tests.helpers.families.parts_language import build_llama
from tide.scenes.pipeline import build_tokenizer


def build_hunyuan_video() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT,
        pooled_projection_dim=TEXT,
        rope_axes_dim=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return diffusers.HunyuanVideoPipeline(
        text_encoder=build_llama(),
        tokenizer=build_tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatch(shift=7.0),
        text_encoder_2=build_clip(CLIPTextModel, 77),
        tokenizer_2=build_tokenizer(),
    )


FAMILY = Family(
    build_hunyuan_video,
    (64, 32),
    (2, 4, 2),
    JOINT,
    guided={"guidance_scale": 2.0, "true_cfg_scale": 3.0, "negative_prompt": "a tree"},
    frames=5,
)
