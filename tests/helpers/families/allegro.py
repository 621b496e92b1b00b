"""Allegro: clips of six latent frames, the fewest that its VAE makes."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import EulerAncestralDiscreteScheduler

from tests.helpers.families.family import ADALN_SINGLE, Family
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_allegro() -> Any:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=3,
        cross_attention_dim=48,
        sample_height=8,
        sample_width=8,
        sample_frames=6,
        caption_channels=128,
    )
    vae = diffusers.AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )
    vae.enable_tiling()
    vae.enable_slicing()  # the pipeline cannot decode two clips at once
    # The published model predicts epsilon, with which a random one would leave the range of clips by far.
    scheduler = EulerAncestralDiscreteScheduler(prediction_type="v_prediction")
    return diffusers.AllegroPipeline(build_tokenizer(), build_text_encoder(), vae, transformer, scheduler)


FAMILY = Family(
    build_allegro,
    (64, 64),
    (6, 4, 4),
    ADALN_SINGLE,
    frames=24,
)
