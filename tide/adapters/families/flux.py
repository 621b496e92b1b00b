"""Flux: double-stream blocks, then single-stream blocks, over latents packed two by two."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from torch import Tensor

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import DOUBLE, LIKE_FLUX, SINGLE, Embedding, Spec, Text

_GRID = "its image tokens are a grid of several pictures, of which one is drawn"


@declared
class FluxAdapter(DeclaredAdapter):
    """Kontext's reference pictures follow the image in the stream, as tokens whose first coordinate is not 0; they do
    not count as image tokens. If pictures are concatenated to the latents as channels (Fill, Control), the pipeline
    draws and is edited like any other, but :meth:`denoise` raises, because it has no pictures."""

    spec = Spec(
        family="flux",
        transformer="FluxTransformer2DModel",
        models="Flux.1 dev, schnell, Kontext, Fill",
        pipelines={
            "FluxPipeline": (),
            "FluxKontextPipeline": (),
            "FluxImg2ImgPipeline": ("image",),
            "FluxInpaintPipeline": ("image", "mask_image"),
            "FluxFillPipeline": ("image", "mask_image"),
            "FluxKontextInpaintPipeline": ("image", "mask_image"),
            "FluxControlNetPipeline": ("control_image",),
            "FluxControlPipeline": ("control_image",),
            "FluxControlNetImg2ImgPipeline": ("image", "control_image"),
            "FluxControlImg2ImgPipeline": ("image", "control_image"),
            "FluxControlNetInpaintPipeline": ("image", "mask_image", "control_image"),
            "FluxControlInpaintPipeline": ("image", "mask_image", "control_image"),
        },
        refused={
            "VisualClozeGenerationPipeline": (_GRID, "FluxFillPipeline"),
            "VisualClozePipeline": (_GRID, "FluxFillPipeline"),
        },
        blocks=(DOUBLE, replace(SINGLE, output="text, image")),
        embedding=Embedding(conditioned=True, factor=1000),
        text=Text({"encoder_hidden_states": 0, "pooled_projections": 1}, {}, guidance=3.5),
        channels="out_channels",
        notes=(
            "A single-stream block has only an output to hook, and one modulation for both chunks.",
            "guidance_scale is the embedded one; true guidance is true_cfg_scale and negative_prompt.",
        ),
        conditioning="pooled prompt, and embedded guidance (dev)",
        **LIKE_FLUX,
    )

    def generate(self, prompts: Any, **kwargs: Any) -> Tensor:
        """As for every adapter. Kontext fits every size to an area; the size asked for is drawn instead."""
        if "max_area" in inspect.signature(type(self.pipe).__call__).parameters:
            own = (side * self.pixels_per_latent for side in self.default_latents)
            height, width = (kwargs.get(name) or side for name, side in zip(("height", "width"), own, strict=True))
            kwargs = {"max_area": height * width, **kwargs, "height": height, "width": width}
        return super().generate(prompts, **kwargs)
