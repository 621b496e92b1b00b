"""LTX-Video."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLLTXVideo
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import ADALN_SINGLE, Family
from tide.scenes.pipeline import build_text_encoder, build_tokenizer

_CHANNELS = 4


def build_ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=128,
    )
    scheduler = FlowMatch(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=400_000,  # the VAE compresses less than the published one, so that there are more tokens
        shift_terminal=0.1,
    )
    return diffusers.LTXPipeline(scheduler, _build_vae(), build_text_encoder(), build_tokenizer(), transformer)


def _build_vae() -> AutoencoderKLLTXVideo:
    """To a latent of 8 x 8 pixels, of one frame or of four."""
    vae = AutoencoderKLLTXVideo(
        latent_channels=_CHANNELS,
        block_out_channels=(8, 8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False),
        decoder_spatio_temporal_scaling=(True, True, False),
        decoder_inject_noise=(False,) * 4,
        downsample_type=("conv",) * 3,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        patch_size=2,
    )
    vae.latents_mean.copy_(torch.tensor([0.2, -0.1, 0.0, 0.4]))
    vae.latents_std.copy_(torch.tensor([0.8, 1.2, 1.0, 1.5]))
    return vae


FAMILY = Family(
    build_ltx,
    (64, 32),
    (2, 8, 4),
    {**ADALN_SINGLE, "mlp": ("norm2", "ff")},
    arguments={"max_sequence_length": 20},
    frames=5,
)
