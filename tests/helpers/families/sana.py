"""Sana, with the deep compression autoencoder."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler

from tests.helpers.families.family import ADALN_SINGLE, Family
from tests.helpers.families.parts import TEXT, build_gemma
from tide.scenes.pipeline import build_tokenizer


def build_sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=TEXT,
        sample_size=8,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41,
    )
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return diffusers.SanaPipeline(build_tokenizer(), build_gemma(), vae, transformer, scheduler)


FAMILY = Family(build_sana, (64, 32), (16, 8), ADALN_SINGLE)
