"""Mochi: two streams, modulated by a scale alone, and a schedule that counts from noise (0) to the clip (1000)."""

from __future__ import annotations

from typing import Any

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
        conditioning="pooled prompt",
        guidance="unconditional, conditional",
        draws="videos",
        size="call",
        result="frames",
        sign=-1,
        inverted=True,
        timestep_unit=(1000.0, -1.0),
        scales_channels=True,
        notes=(
            "TIDE counts its timesteps as those of other models: 1000 is noise, 0 the clip.",
            "Blocks norm what attention and feed-forward return: a factor on all of it changes nothing.",
        ),
    )

    def check_steps(self, n_steps: int) -> None:
        """The pipeline's schedule has a linear half and a quadratic one."""
        if n_steps < 2:
            raise TideError("Mochi draws in two steps or more")
        super().check_steps(n_steps)

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        return {"sigmas": linear_quadratic_schedule(n_steps, 0.025)}
