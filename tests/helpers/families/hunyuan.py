"""HunyuanDiT 1.1."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import DDIMScheduler
from transformers import BertConfig, BertModel

from tests.helpers.families.family import Family
from tests.helpers.families.parts import TEXT, build_vae
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_hunyuan() -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=TEXT,
        cross_attention_dim_t5=128,
        pooled_projection_dim=16,
    )
    bert = BertConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
    )
    return diffusers.HunyuanDiTPipeline(
        vae=build_vae(4),
        text_encoder=BertModel(bert),
        tokenizer=build_tokenizer(),
        transformer=transformer,
        scheduler=DDIMScheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=build_text_encoder(),
        tokenizer_2=build_tokenizer(),
    )


FAMILY = Family(build_hunyuan, (64, 32), (4, 2), {"msa": ("norm1.norm", "attn1")})
