"""DiT, with names of two classes."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import DDIMScheduler

from tests.helpers.families.family import Family
from tests.helpers.families.parts import build_vae


def build_dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, out_channels=8, num_layers=3, sample_size=8, patch_size=2
    )
    labels = {0: "tench, Tinca tinca", 1: "house"}
    return diffusers.DiTPipeline(transformer, build_vae(3), DDIMScheduler(), id2label=labels)


FAMILY = Family(
    build_dit,
    (32, 32),
    (4, 4),
    {"msa": ("norm1.norm", "attn1"), "mlp": ("norm3", "ff")},
    guided={"guidance_scale": 3.0},
    prompts=("house", "7"),
)
