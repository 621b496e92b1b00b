"""Mochi: two streams, modulated by a scale alone, and a schedule that counts from noise (0) to the clip (1000)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import QUARTERS, Blocks, Embedding, Spec, Text
from tide.errors import TideError


@declared
class MochiAdapter(DeclaredAdapter):
    """The text, pooled by attention, is added to the timestep embedding."""

    spec = Spec(
        family="mochi",
        transformer="MochiTransformer3DModel",
        models="Mochi 1",
        pipelines={"MochiPipeline": ()},
        blocks=(Blocks(output="image, text", attention_output="image, text", chunks=QUARTERS),),
        embedding=Embedding("time_embed", 0, conditioned=True),
        text=Text({"encoder_hidden_states": 0, "encoder_attention_mask": 1}),
        guidance="unconditional, conditional",
        draws="videos",
        result="frames",
        sign=-1,
        timestep_unit=(1000.0, -1.0),
        scales_channels=True,
        notes=("TIDE counts its timesteps as those of other models: 1000 is noise, 0 the clip.",),
    )

    def from_scheduler(self, timestep: Tensor) -> Tensor:
        """The pipeline inverts the sigmas of its schedule."""
        return 1000 - timestep

    to_scheduler = from_scheduler

    def check_steps(self, n_steps: int) -> None:
        """The pipeline's schedule has a linear half and a quadratic one."""
        if n_steps < 2:
            raise TideError("Mochi draws in two steps or more")
        super().check_steps(n_steps)

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        return {"sigmas": linear_quadratic_schedule(n_steps, 0.025)}

    @property
    def pixels_per_latent(self) -> int:
        return int(self.pipe.vae_spatial_scale_factor)

    @property
    def frames_per_latent(self) -> int:
        return int(self.pipe.vae_temporal_scale_factor)

    @property
    def default_latents(self) -> tuple[int, ...]:
        size = self.pipe.default_height, self.pipe.default_width
        return (self.latent_frames(19), *(side // self.pixels_per_latent for side in size))
