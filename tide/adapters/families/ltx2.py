"""LTX-2: a stream of video and one of sound in each block; the tokens that TIDE hooks are those of the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.guidance import Guidance, is_running
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.adapters.vae import channel_scales, vae_of

_GIVEN = "tokens of the frames that it is given have timesteps of their own"


@declared
class LTX2Adapter(DeclaredAdapter):
    """Noised clips have no sound: unless ``text`` holds its latents, ``audio_hidden_states``, the model runs without
    the attention between video and sound, as it does in its own guidance by modality."""

    spec = Spec(
        family="ltx2",
        transformer="LTX2VideoTransformer3DModel",
        models="LTX-2",
        pipelines={"LTX2Pipeline": ()},
        refused={
            f"LTX2{name}Pipeline": (_GIVEN, "LTX2Pipeline")
            for name in ("ImageToVideo", "Condition", "InContext", "HDR", "DFR", "DFRTemporalRefine")
        },
        blocks=(Blocks(output="image, text", linear="/time_embed.linear", table="scale_shift_table"),),
        embedding=Embedding("time_embed.emb"),
        text=Text({"encoder_hidden_states": 0, "encoder_attention_mask": 1}),
        guidance="unconditional, conditional",
        draws="videos",
        result="frames",
        sequence=True,
        grid="size arguments",
        size="call",
        beside=("audio_hidden_states",),
        scales_channels=True,
        sigmas=True,
        max_shift=2.05,
        call_defaults={
            **dict.fromkeys(("stg_scale", "guidance_rescale"), 0.0),
            **dict.fromkeys((f"audio_{name}" for name in ("guidance_scale", "stg_scale", "modality_scale")), None),
            **{"modality_scale": 1.0, "audio_guidance_rescale": None},
        },
        notes=(
            "generate guides by the prompt alone, video and sound alike; stg_scale, modality_scale and so on add more.",
            "Calls of these other kinds of guidance count as unconditional.",
            "Noised clips have no sound; collect along the sampling process for what the sound tells the video.",
        ),
    )

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        if guidance.context.startswith("uncond_") and is_running(self.pipe):
            return torch.zeros(self.n_rows(self.arguments(args, kwargs)), dtype=torch.bool)
        return super().conditional_of(args, kwargs, guidance)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """Embeddings for video and for sound, which the pipeline's connectors make of one text, and their mask."""
        text = super().encode_prompts(prompts, max_sequence_length)
        side = getattr(self.pipe.tokenizer, "padding_side", "left")
        video, audio, mask = self.pipe.connectors(*text.values(), padding_side=side)
        names = ("encoder_hidden_states", "audio_encoder_hidden_states")
        masks = ("encoder_attention_mask", "audio_encoder_attention_mask")
        return dict(zip((*names, *masks), (video, audio, mask, mask), strict=True))

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        sound = text.get("audio_hidden_states")
        silence = latents.new_zeros(len(latents), 1, self.transformer.config.audio_in_channels)
        return {
            **dict(zip(("num_frames", "height", "width"), latents.shape[2:], strict=True)),
            **({"audio_hidden_states": silence, "isolate_modalities": True} if sound is None else {}),
            "audio_num_frames": 1 if sound is None else sound.shape[1],
            "sigma": steps,
            "use_cross_timestep": True,
        }

    def _size_of_call(self) -> tuple[int, ...]:
        return self.latent_frames(121), 512 // self.pixels_per_latent, 768 // self.pixels_per_latent

    def _unpacked_drawing(self, packed: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """The pipeline has unpacked what it drew, and undone the scaling of channels."""
        mean, factor = channel_scales(vae_of(self.pipe, "keep it"), packed, by_channel=True, shifted=False)
        return (packed - mean) * factor
