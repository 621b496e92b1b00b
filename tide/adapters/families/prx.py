"""PRX: image tokens that attend to themselves and the text, modulated by timestep and, in larger models, size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Sinusoid, Spec, Text
from tide.errors import TideError

#: The sinusoid is a function, whose arguments the model's config names.
_EMBEDDING = Embedding(
    "", None, Sinusoid(), "time_in", ("in_layer", "out_layer"), "resolution_embedder", added="resolution_embedder"
)


@declared
class PRXAdapter(DeclaredAdapter):
    """A block's feed-forward is three layers of the block itself, so that only its modulation can be had."""

    spec = Spec(
        family="prx",
        transformer="PRXTransformer2DModel",
        models="PRX",
        needs="0.39",
        pipelines={"PRXPipeline": ()},
        refused={
            "PRXPixelPipeline": ("it denoises pixels, from noise of another scale, and its model predicts images", None)
        },
        blocks=(Blocks("blocks", "image", "attention", None, linear="modulation.lin"),),
        embedding=_EMBEDDING,
        text=Text({"encoder_hidden_states": 0, "attention_mask": 1}, length="tokenizer_max_length"),
        conditioning="size, in models that embed it",
        guidance="unconditional, conditional",
        width="hidden_size",
        timestep_unit=(0.0, 1 / 1000),
        call_defaults={"use_resolution_binning": False},
        notes=("Its pipeline needs ftfy.", "Blocks have no feed-forward to hook."),
    )

    def __init__(self, pipe: Any, component: str = "transformer") -> None:
        from diffusers.pipelines.prx import pipeline_prx

        super().__init__(pipe, component)
        if not hasattr(pipeline_prx, "ftfy"):
            raise TideError("PRX's pipeline cleans prompts with ftfy, which is missing; pip install ftfy")

    @property
    def embedding(self) -> Embedding:
        config = self.transformer.config
        return replace(_EMBEDDING, sinusoid=Sinusoid(scale=config.time_factor, max_period=config.time_max_period))

    @property
    def default_latents(self) -> tuple[int, int]:
        side = int(self.pipe.get_default_resolution()) // self.pixels_per_latent
        return side, side

    def run_pipeline(self, *args: Any, **kwargs: Any) -> Tensor:
        """As for every adapter. The pipeline gives a guided call two timesteps, however many rows it has, which fails
        for several images: they are given one each."""
        handle = self.pipe.transformer.register_forward_pre_hook(_a_timestep_a_row, with_kwargs=True, prepend=True)
        try:
            return super().run_pipeline(*args, **kwargs)
        finally:
            handle.remove()


def _a_timestep_a_row(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "timestep": kwargs["timestep"][:1].expand(len(kwargs["hidden_states"]))}
