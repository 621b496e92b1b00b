"""Stable Diffusion 3 and 3.5: text and image in two streams, modulated by timestep and pooled prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.guidance import Guidance
from tide.adapters.pipelines import PAG
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text


@declared
class SD3Adapter(DeclaredAdapter):
    """The blocks of 3.5 may have a second attention, whose chunks follow the six usual ones of the projection."""

    spec = Spec(
        family="sd3",
        transformer="SD3Transformer2DModel",
        models="Stable Diffusion 3, 3.5",
        pipelines={
            "StableDiffusion3Pipeline": (),
            "StableDiffusion3Img2ImgPipeline": ("image",),
            "StableDiffusion3InpaintPipeline": ("image", "mask_image"),
            "StableDiffusion3ControlNetPipeline": ("control_image",),
            "StableDiffusion3ControlNetInpaintingPipeline": ("control_image", "control_mask"),
        },
        refused={
            "StableDiffusion3PAGPipeline": (PAG, "StableDiffusion3Pipeline"),
            "StableDiffusion3PAGImg2ImgPipeline": (PAG, "StableDiffusion3Img2ImgPipeline"),
        },
        blocks=(Blocks(output="text, image", attention="attn", attention_output="image, text"),),
        embedding=Embedding(conditioned=True),
        text=Text(
            {"encoder_hidden_states": 0, "pooled_projections": 2},
            {"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False},
        ),
        conditioning="pooled prompt",
        guidance="unconditional, conditional",
        width="inner_dim",
        channels="out_channels",
        max_shift=1.16,
        notes=("The third call of skip-layer guidance, away from which guidance steers, counts as unconditional.",),
    )

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        arguments = self.arguments(args, kwargs)
        if arguments.get("skip_layers") is not None:
            return torch.zeros(len(arguments["hidden_states"]), dtype=torch.bool)
        return super().conditional_of(args, kwargs, guidance)
