"""Lumina-Next: image tokens only, modulated by timestep and pooled prompt, without a shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import QUARTERS, Blocks, Embedding, Spec, Text

#: Side of the grid of positions that the pipeline passes to the model, which uses a corner of it.
_POSITIONS = 384


@declared
class LuminaNextAdapter(DeclaredAdapter):
    """Blocks use an RMSNorm with a scale only. The output of their attention is per head, before the projection that it
    shares with the cross-attention; its heads are concatenated here."""

    spec = Spec(
        family="lumina_next",
        transformer="LuminaNextDiT2DModel",
        models="Lumina-Next",
        pipelines={"LuminaPipeline": (), "LuminaText2ImgPipeline": ()},
        blocks=(Blocks("layers", feed_forward="feed_forward", attention_output="heads", chunks=QUARTERS),),
        embedding=Embedding("time_caption_embed", conditioned=True),
        text=Text({"encoder_hidden_states": 0, "encoder_mask": 1}, length=None),
        conditioning="pooled prompt",
        guidance="conditional, unconditional",
        width="hidden_size",
        sign=-1,
        timestep_unit=(1.0, -1 / 1000),  # the model counts from noise (0) to image (1)
        shifts_latents=False,
        call_defaults={"clean_caption": False},
    )

    @torch.no_grad()
    def encode_prompts(self, prompts: Any, max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """As for every adapter, padded to ``max_sequence_length`` (256): the pipeline pads to the longest prompt of its
        batch, and masked tokens change nothing."""
        text = super().encode_prompts(prompts)
        padding = (max_sequence_length or self.pipe.max_sequence_length) - text["encoder_mask"].shape[1]
        states = nn.functional.pad(text["encoder_hidden_states"], (0, 0, 0, padding))
        return {"encoder_hidden_states": states, "encoder_mask": nn.functional.pad(text["encoder_mask"], (0, padding))}

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        """Rotary positions, stretched where the image is larger than the pipeline's own size: linearly, and in
        frequency from the pipeline's watershed on, which by default is the very end."""
        from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        stretch = (height * width) ** 0.5 / self.pipe.default_image_size
        linear, frequency = (1.0, stretch) if steps[0] >= 1 else (stretch, 1.0)
        rotary = get_2d_rotary_pos_embed_lumina(
            self.transformer.head_dim, _POSITIONS, _POSITIONS, linear_factor=linear, ntk_factor=frequency
        )
        length = (self.pipe.default_image_size // 16) ** 2
        return {"image_rotary_emb": rotary, "cross_attention_kwargs": {"base_sequence_length": length}}
