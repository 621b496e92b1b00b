"""FIBO of Bria: Flux over single latents, each block of which also reads a layer of the text encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import DOUBLE, LIKE_FLUX, SINGLE, Embedding, Spec, Text

#: The mask of the text goes by the name of the argument that holds it.
_MASK, _LAYERS = "joint_attention_kwargs", "text_encoder_layers"


@declared
class BriaFiboAdapter(DeclaredAdapter):
    """Reference pictures (Edit) follow the image in the stream and do not count as image tokens."""

    spec = Spec(
        family="bria_fibo",
        transformer="BriaFiboTransformer2DModel",
        models="FIBO",
        pipelines={"BriaFiboPipeline": (), "BriaFiboEditPipeline": ()},
        blocks=(DOUBLE, SINGLE),
        embedding=Embedding("time_embed"),
        text=Text({"encoder_hidden_states": 0, _MASK: 3, _LAYERS: 5}, {"guidance_scale": 1.0}, mask_of_all=_MASK),
        square=1,
        scales_channels=True,
        vae_has_frames=True,
        notes=("Prompts are JSON that describes the image.",),
        **{**LIKE_FLUX, "guidance": "unconditional, conditional", "timestep_unit": (0.0, 1.0)},
    )

    def _given(self, part: Any) -> Tensor:
        """Layers of the text encoder as one tensor ``[B, L, layers, c]``: the last ones, one for each block."""
        return super()._given(torch.stack(part[-self.n_blocks :], dim=2) if isinstance(part, list) else part)

    def text_arguments(self, text: EncodedText, n_images: int | None) -> dict[str, Any]:
        given, layers = super().text_arguments(text, n_images), text[_LAYERS].unbind(2)
        given[_MASK] = {"attention_mask": given[_MASK].bool()[:, None, None]}
        return given | {_LAYERS: [*layers, *[layers[-1]] * (self.n_blocks - len(layers))]}
