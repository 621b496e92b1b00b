"""Flux 2: one modulation for all blocks of a kind, and latents normalised by squares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.packing import pack
from tide.adapters.registry import declared
from tide.adapters.spec import DOUBLE, LIKE_FLUX, SINGLE, Embedding, Spec, Text
from tide.adapters.vae import channel_scales, vae_of

_CACHED = "it reads reference pictures in the first step alone, before the image and with a modulation of their own"


@declared
class Flux2Adapter(DeclaredAdapter):
    """Reference pictures follow the image in the stream and do not count as image tokens."""

    spec = Spec(
        family="flux2",
        transformer="Flux2Transformer2DModel",
        models="Flux.2 dev, klein",
        pipelines={"Flux2Pipeline": (), "Flux2KleinPipeline": (), "Flux2KleinInpaintPipeline": ("image", "mask_image")},
        refused={"Flux2KleinKVPipeline": (_CACHED, "Flux2KleinPipeline")},
        blocks=(
            replace(DOUBLE, linear="/double_stream_modulation_img.linear"),
            replace(SINGLE, linear="/single_stream_modulation.linear"),
        ),
        embedding=Embedding("time_guidance_embed", conditioned="config.guidance_embeds", factor=1000),
        text=Text({"encoder_hidden_states": 0, "txt_ids": 1}, {}, guidance=4.0),
        notes=("dev embeds guidance_scale and takes no negative prompt; klein's negative prompt is empty.",),
        conditioning="embedded guidance (dev)",
        **LIKE_FLUX,
    )

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return {**super().schedule_arguments(n_steps), "mu": compute_empirical_mu(self._shifted_by(), n_steps)}

    def _unpacked_drawing(self, packed: Tensor, kwargs: Any) -> Tensor:
        """Pipelines of klein return the latents that the VAE decodes."""
        if packed.ndim == 4:
            mean, factor = channel_scales(vae_of(self.pipe, "use dev"), packed, by_channel=False, shifted=False)
            packed = pack((packed - mean) * factor)
        return super()._unpacked_drawing(packed, kwargs)
