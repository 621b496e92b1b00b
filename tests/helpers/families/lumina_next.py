"""Lumina-Next."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from torch import nn

from tests.helpers.families.family import Family
from tests.helpers.families.parts import TEXT, build_gemma, build_vae
from tide.scenes.pipeline import build_tokenizer


def build_lumina_next() -> Any:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=TEXT,
    )
    nn.init.zeros_(transformer.pad_token)  # left uninitialised by the model, and not used for images of one size
    return diffusers.LuminaPipeline(transformer, FlowMatch(), build_vae(4), build_gemma(), build_tokenizer())


FAMILY = Family(
    build_lumina_next, (64, 32), (4, 2), {"msa": ("norm1.norm", "attn1"), "mlp": ("ffn_norm1", "feed_forward")}
)
