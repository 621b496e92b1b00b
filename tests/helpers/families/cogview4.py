"""CogView4, whose schedule is shifted by the image's size."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import Family
from tests.helpers.families.parts import TEXT, build_vae
from tests.helpers.families.parts_language import build_glm
from tide.scenes.pipeline import build_tokenizer


def build_cogview4() -> Any:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=TEXT,
        time_embed_dim=24,
        condition_dim=8,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    scheduler = FlowMatch(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    return diffusers.CogView4Pipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_glm(),
        vae=build_vae(4, scaling_factor=0.8),
        transformer=transformer,
        scheduler=scheduler,
    )


FAMILY = Family(build_cogview4, (64, 32), (4, 2), {"msa": ("norm1.norm", "attn1"), "mlp": ("norm2", "ff")})
