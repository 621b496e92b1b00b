"""Chroma: Flux whose modulation a network makes of the timestep, a row for each chunk of each block."""

from __future__ import annotations

from dataclasses import replace

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import DOUBLE, LIKE_FLUX, SINGLE, Spec, Text


@declared
class ChromaAdapter(DeclaredAdapter):
    """The rows are read as blocks are given them: the network is larger than most SAEs."""

    spec = Spec(
        family="chroma",
        transformer="ChromaTransformer2DModel",
        models="Chroma1",
        pipelines={
            "ChromaPipeline": (),
            "ChromaImg2ImgPipeline": ("image",),
            "ChromaInpaintPipeline": ("image", "mask_image"),
        },
        blocks=tuple(replace(each, linear=None, given="temb") for each in (DOUBLE, SINGLE)),
        embedding=None,
        text=Text({"encoder_hidden_states": 0, "attention_mask": 2}, mask_of_all="attention_mask"),
        negative=3,
        notes=("ChromaInpaintPipeline of diffusers 0.42 needs transformer.register_to_config(guidance_embeds=False).",),
        conditioning="none; the model's own table of scales and shifts at t",
        **LIKE_FLUX,
    )
