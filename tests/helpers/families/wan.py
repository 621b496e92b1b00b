"""Wan: 2.1, 2.2 with its two transformers, and the 5B model, whose every token has a timestep."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from transformers import UMT5Config, UMT5EncoderModel

from tests.helpers.families.family import ADALN_SINGLE, Family
from tests.helpers.families.parts import TEXT
from tide.scenes.pipeline import build_tokenizer

_CHANNELS = 4


def build_wan(*, low_noise: bool = False, expand_timesteps: bool = False, pictures: int = 0) -> Any:
    """A tiny pipeline, of 2.1 unless told otherwise.

    Args:
        low_noise: a second transformer takes over below the timestep 875.
        expand_timesteps: as the 5B model of 2.2, whose VAE packs pixels two by two.
        pictures: channels that the transformer is given beside the latents.
    """
    return diffusers.WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=_build_text_encoder(),
        vae=_build_vae(packed=expand_timesteps),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0 if expand_timesteps else 3.0
        ),
        transformer=_build_transformer(pictures),
        transformer_2=_build_transformer(pictures) if low_noise else None,
        boundary_ratio=0.875 if low_noise else None,
        expand_timesteps=expand_timesteps,
    )


def _build_transformer(pictures: int) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=_CHANNELS + pictures,
        out_channels=_CHANNELS,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=64,
        num_layers=3,
        rope_max_seq_len=32,
    )


def _build_vae(*, packed: bool) -> AutoencoderKLWan:
    """To a latent of 8 x 8 pixels, or 16 x 16 if ``packed``, of one frame or of four."""
    channels = 12 if packed else 3
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.2, -0.1, 0.0, 0.4],
        latents_std=[0.8, 1.2, 1.0, 1.5],
        is_residual=packed,
        in_channels=channels,
        out_channels=channels,
        patch_size=2 if packed else None,
        scale_factor_spatial=16 if packed else 8,
    )


def _build_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(build_tokenizer()), d_model=TEXT, d_kv=16, d_ff=2 * TEXT, num_layers=2, num_heads=2
    )
    return UMT5EncoderModel(config)


FAMILY = Family(
    build_wan,
    (64, 32),
    (2, 4, 2),
    {**ADALN_SINGLE, "mlp": ("norm3", "ffn")},
    arguments={"max_sequence_length": 20},
    frames=5,
)
