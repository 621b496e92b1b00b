"""CogView3-Plus, with the schedule of v-prediction down to no signal at all."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import CogVideoXDDIMScheduler

from tests.helpers.families.family import Family
from tests.helpers.families.parts import build_vae
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_cogview3plus() -> Any:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=128,
        time_embed_dim=24,
        condition_dim=8,
        pos_embed_max_size=8,
        sample_size=8,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=4.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return diffusers.CogView3PlusPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder(),
        vae=build_vae(4, scaling_factor=0.8),
        transformer=transformer,
        scheduler=scheduler,
    )


FAMILY = Family(build_cogview3plus, (64, 32), (4, 2), {"msa": ("norm1.norm_x", "attn1"), "mlp": ("norm2", "ff")})
