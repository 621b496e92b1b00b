"""Allegro: PixArt's blocks over the tokens of a clip."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.adapters.vae import vae_of
from tide.errors import TideError


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
        width="inner_dim",
        flow_matching=False,
        shifts_latents=False,
        call_defaults={"clean_caption": False},
        notes=("Its VAE takes clips of 24 frames or more, and needs pipe.vae.enable_tiling().",),
    )

    @property
    def default_latents(self) -> tuple[int, ...]:
        config = self.transformer.config
        return int(config.sample_frames), int(config.sample_height), int(config.sample_width)

    def latent_frames(self, frames: int) -> int:
        return -(-frames // self.frames_per_latent)

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        frames, *sides = latents.shape[2:]
        height, width = (side * self.pixels_per_latent for side in sides)
        rotary = self.pipe._prepare_rotary_positional_embeddings(len(latents), height, width, frames, latents.device)
        return {"image_rotary_emb": rotary}

    def encode_images(self, images: Tensor, generator: Any = None) -> Tensor:
        self._check_tiles(*(images if images.ndim == 5 else images.unsqueeze(2)).shape[2:])
        return super().encode_images(images, generator)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Clips ``[B, 3, F, H, W]`` in [-1, 1]; the VAE returns their frames before the channels."""
        frames, height, width = latents.shape[2:]
        side = self.pixels_per_latent
        self._check_tiles(frames * self.frames_per_latent, height * side, width * side)
        return super().decode_latents(latents).transpose(1, 2)

    def _check_tiles(self, *size: int) -> None:
        vae = vae_of(self.pipe, "pass latents instead of clips")
        if not vae.use_tiling or any(side < least for side, least in zip(size, vae.kernel, strict=True)):
            raise TideError(
                f"Allegro's VAE works tile by tile; call pipe.vae.enable_tiling(), for clips of {vae.kernel[0]} frames "
                f"of {vae.kernel[1]} x {vae.kernel[2]} pixels or more"
            )
