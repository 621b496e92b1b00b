"""Allegro: PixArt's blocks over the tokens of a clip."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text


@declared
class AllegroAdapter(DeclaredAdapter):
    """The VAE compresses all frames alike, and works on tiles of 24 frames alone."""

    spec = Spec(
        family="allegro",
        transformer="AllegroTransformer3DModel",
        models="Allegro",
        pipelines={"AllegroPipeline": ()},
        blocks=(Blocks(linear="/adaln_single.linear", table="scale_shift_table"),),
        embedding=Embedding("adaln_single.emb"),
        text=Text({"encoder_hidden_states": 0, "encoder_attention_mask": 1}),
        guidance="unconditional, conditional",
        draws="videos",
        result="frames",
        size="config.sample_height",
        width="inner_dim",
        flow_matching=False,
        shifts_latents=False,
        call_defaults={"clean_caption": False},
        notes=("Its VAE takes clips of 24 frames or more, and needs pipe.vae.enable_tiling().",),
    )

    def latent_frames(self, frames: int) -> int:
        return -(-frames // self.frames_per_latent)

    def clip_frames(self, latent_frames: int) -> int:
        return latent_frames * self.frames_per_latent

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        frames, *sides = latents.shape[2:]
        height, width = (side * self.pixels_per_latent for side in sides)
        rotary = self.pipe._prepare_rotary_positional_embeddings(len(latents), height, width, frames, latents.device)
        return {"image_rotary_emb": rotary}
