"""FIBO of Bria."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import JOINT, Family
from tests.helpers.families.parts_chat import CHAT, build_chat_tokenizer, build_smol_lm3

#: The pipeline writes token 128000 for an empty prompt.
_N_WORDS = 128001


def build_bria_fibo() -> Any:
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * CHAT,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=CHAT,
    )
    # A latent is 16 x 16 pixels, as the pipeline takes for granted.
    vae = diffusers.AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    pipe = diffusers.BriaFiboPipeline(
        transformer=transformer,
        scheduler=FlowMatch(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=build_smol_lm3(4, _N_WORDS),
        tokenizer=build_chat_tokenizer(),
    )
    pipe.default_sample_size = 4
    return pipe


FAMILY = Family(build_bria_fibo, (64, 32), (4, 2), JOINT)
