"""Qwen-Image: two streams over latents packed two by two, modulated by the timestep alone."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tide.adapters.base import check_text_encoder
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import DOUBLE, LIKE_FLUX, Embedding, Spec, Text
from tide.errors import TideError

_LAYERS = "it draws several layers of a picture at once, each with image tokens of its own"


@declared
class QwenImageAdapter(DeclaredAdapter):
    """The pictures that are edited follow the image in the stream; their tokens do not count as image tokens."""

    spec = Spec(
        family="qwen_image",
        transformer="QwenImageTransformer2DModel",
        models="Qwen-Image, Qwen-Image-Edit",
        pipelines={
            "QwenImagePipeline": (),
            "QwenImageImg2ImgPipeline": ("image",),
            "QwenImageInpaintPipeline": ("image", "mask_image"),
            "QwenImageEditPipeline": ("image",),
            "QwenImageEditPlusPipeline": ("image",),
            "QwenImageEditInpaintPipeline": ("image", "mask_image"),
            "QwenImageControlNetPipeline": ("control_image",),
            "QwenImageControlNetInpaintPipeline": ("control_image", "control_mask"),
        },
        refused={"QwenImageLayeredPipeline": (_LAYERS, None)},
        blocks=(replace(DOUBLE, feed_forward="img_mlp", linear="img_mod.1"),),
        embedding=Embedding(),  # its sinusoid multiplies by 1000
        text=Text({"encoder_hidden_states": 0, "encoder_hidden_states_mask": 1}, {}),
        scales_channels=True,
        vae_has_frames=True,
        guidance_scale="true_cfg_scale",
        notes=("Edit draws the size of its picture unless height and width are given; Edit Plus takes one prompt.",),
        **{**LIKE_FLUX, "grid": "img_shapes"},
    )

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """As for every adapter, always with the mask, which the pipeline leaves out where nothing is padded."""
        check_text_encoder(self.pipe)
        if "image" in inspect.signature(self.pipe.encode_prompt).parameters:
            raise TideError(
                f"{type(self.pipe).__name__} reads prompts together with a picture; collect along the sampling process "
                "instead"
            )
        text = super().encode_prompts(prompts, max_sequence_length)
        states = text["encoder_hidden_states"]
        return {"encoder_hidden_states_mask": states.new_ones(states.shape[:2]).long(), **text}

    def run_pipeline(self, prompts: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Without a negative prompt the pipeline does not guide, so it gets a blank one."""
        return super().run_pipeline(prompts, *args, **{"negative_prompt": [" "] * len(prompts), **kwargs})
