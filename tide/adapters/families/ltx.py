"""LTX-Video: latents of many pixels, each of them a token."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text

_GIVEN = "tokens of the frames that it is given have timesteps of their own"
_WINDOWS = "it draws a clip window by window, with tokens of frames that are given"


@declared
class LTXAdapter(DeclaredAdapter):
    """The schedule is shifted by the number of tokens, frames included."""

    spec = Spec(
        family="ltx",
        transformer="LTXVideoTransformer3DModel",
        models="LTX-Video 0.9 to 0.9.8",
        pipelines={"LTXPipeline": ()},
        refused={
            "LTXImageToVideoPipeline": (_GIVEN, "LTXPipeline"),
            "LTXConditionPipeline": (_GIVEN, "LTXPipeline"),
            "LTXI2VLongMultiPromptPipeline": (_WINDOWS, "LTXPipeline"),
        },
        blocks=(Blocks(linear="/time_embed.linear", table="scale_shift_table"),),
        embedding=Embedding("time_embed.emb"),
        text=Text({"encoder_hidden_states": 0, "encoder_attention_mask": 1}),
        guidance="unconditional, conditional",
        draws="videos",
        sequence=True,
        grid="size arguments",
        size="call",
        scales_channels=True,
        sigmas=True,
        max_shift=1.15,
        result="frames",
        notes=("Noised clips are taken to have 25 frames a second, the pipeline's default.",),
    )

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        rate = inspect.signature(type(self.pipe).__call__).parameters["frame_rate"].default
        side = self.pixels_per_latent
        size = dict(zip(("num_frames", "height", "width"), latents.shape[2:], strict=True))
        return {**size, "rope_interpolation_scale": (self.frames_per_latent / rate, side, side)}
