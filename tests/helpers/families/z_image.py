"""Z-Image."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import Family
from tests.helpers.families.parts import build_vae
from tests.helpers.families.parts_chat import CHAT, build_chat_tokenizer, build_qwen3


def build_z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=48,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=CHAT,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    return diffusers.ZImagePipeline(
        scheduler=FlowMatch(shift=3.0),
        vae=build_vae(4, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=build_qwen3(2),
        tokenizer=build_chat_tokenizer(),
        transformer=transformer,
    )


FAMILY = Family(
    build_z_image,
    (64, 32),
    (4, 2),
    {"msa": ("attention_norm1", "attention"), "mlp": ("ffn_norm1", "feed_forward")},
    unguided={"guidance_scale": 0.0},
)
