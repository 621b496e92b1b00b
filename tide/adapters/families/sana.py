"""Sana: linear attention over deeply compressed latents, modulated by adaLN-single as PixArt is."""

from __future__ import annotations

from typing import Any

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.pipelines import PAG
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.errors import TideError

#: The feed-forward is a convolution, which gets and returns ``[B, d_model, rows, columns]``.
BLOCKS = Blocks(
    linear="/time_embed.linear", table="scale_shift_table", feed_forward_input="map", feed_forward_output="map"
)


@declared
class SanaAdapter(DeclaredAdapter):
    """The timestep is scaled by the model's ``timestep_scale``. Models with ``guidance_embeds`` add the embedded
    guidance scale; prompts follow the instruction that the pipeline puts before them."""

    spec = Spec(
        family="sana",
        transformer="SanaTransformer2DModel",
        models="Sana",
        pipelines={"SanaPipeline": (), "SanaControlNetPipeline": ("control_image",)},
        refused={"SanaPAGPipeline": (PAG, "SanaPipeline")},
        blocks=(BLOCKS,),
        embedding=Embedding("time_embed.emb"),
        text=Text(
            {"encoder_hidden_states": 0, "encoder_attention_mask": 1},
            as_called=("complex_human_instruction",),
            guidance=4.5,
        ),
        received="`timestep_scale` t",
        conditioning="embedded guidance, in models that have it",
        guidance="unconditional, conditional",
        shifts_latents=False,
        call_defaults={"use_resolution_binning": False, "clean_caption": False},
    )

    def __init__(self, pipe: Any, component: str = "transformer") -> None:
        super().__init__(pipe, component)
        if type(getattr(pipe, "scheduler", None)).__name__ == "SCMScheduler" and self.family == "sana":
            raise TideError("this pipeline does not know Sana-Sprint's schedule (SCMScheduler); use SanaSprintPipeline")
        self.timestep_unit = (0.0, self.timestep_scale)

    @property
    def timestep_scale(self) -> float:
        """What the pipeline multiplies timesteps by."""
        return float(self.transformer.config.timestep_scale)

    @property
    def is_conditioned(self) -> bool:
        return bool(self.transformer.config.guidance_embeds)

    @property
    def embedding(self) -> Embedding | None:
        """The embedding of models with embedded guidance lies one module higher."""
        return Embedding("time_embed", 1, conditioned=True) if self.is_conditioned else self.spec.embedding

    @property
    def guidance_factor(self) -> float:
        return float(self.transformer.config.guidance_embeds_scale)
