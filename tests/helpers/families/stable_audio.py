"""Stable Audio: clips of eight latents."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.pipelines.stable_audio import StableAudioProjectionModel

from tests.helpers.families.family import Family
from tests.helpers.families.parts import TEXT
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_stable_audio() -> Any:
    transformer = diffusers.StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=TEXT,
        time_proj_dim=16,
        global_states_input_dim=2 * TEXT,
        cross_attention_input_dim=TEXT,
    )
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        sampling_rate=64,
    )
    # The published pipeline's CosineDPMSolverMultistepScheduler needs torchsde; this one differs in its timesteps.
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.3,
        sigma_max=500.0,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
    )
    return diffusers.StableAudioPipeline(
        vae=vae,
        text_encoder=build_text_encoder(),
        projection_model=StableAudioProjectionModel(128, TEXT, 0, 512),
        tokenizer=build_tokenizer(),
        transformer=transformer,
        scheduler=scheduler,
    )


FAMILY = Family(build_stable_audio, (64,), (8,), {}, arguments={})
