"""LTX-2: clips of two latent frames, with sound."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.helpers.families.family import Family
from tests.helpers.families.parts import TEXT
from tests.helpers.families.parts_language import decoder_options
from tide.scenes.pipeline import build_tokenizer

_MEL, _AUDIO = 16, 8  # bins of the spectrogram, width of an audio token


def _build_text_encoder(layers: int) -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = {**decoder_options(layers), "head_dim": 16, "layer_types": ["full_attention"] * layers}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


def _build_transformer() -> Any:
    return diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=24,
        cross_attention_dim=48,
        vae_scale_factors=(4, 8, 8),
        audio_in_channels=_AUDIO,
        audio_out_channels=_AUDIO,
        audio_num_attention_heads=2,
        audio_attention_head_dim=12,
        audio_cross_attention_dim=24,
        num_layers=3,
        caption_channels=TEXT,
    )


def _build_vae() -> Any:
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 16),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(True, True),
        upsample_factor=(2, 2),
        patch_size=2,
        decoder_causal=False,
    )
    vae.latents_mean += 0.1
    vae.latents_std *= 1.5
    return vae


def build_ltx2() -> Any:
    layers = 2
    connectors = LTX2TextConnectors(
        caption_channels=TEXT,
        text_proj_in_factor=layers + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=TEXT // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=4,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=TEXT // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=4,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=_AUDIO, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=_MEL, resolution=_MEL
    )
    vocoder = LTX2Vocoder(
        in_channels=2 * _MEL,
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    scheduler = FlowMatch(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        # The published ones are 1024 and 4096; this VAE makes 32 times as many latents of a clip.
        base_image_seq_len=32 * 1024,
        max_image_seq_len=32 * 4096,
        shift_terminal=0.1,
    )
    return diffusers.LTX2Pipeline(
        scheduler=scheduler,
        vae=_build_vae(),
        audio_vae=audio_vae,
        text_encoder=_build_text_encoder(layers),
        tokenizer=build_tokenizer(),
        connectors=connectors,
        transformer=_build_transformer(),
        vocoder=vocoder,
    )


FAMILY = Family(
    build_ltx2,
    (64, 32),
    (2, 8, 4),
    {"msa": ("norm1", "attn1"), "mlp": ("norm3", "ff")},
    frames=5,
)
