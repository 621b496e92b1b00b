"""PixArt alpha and PixArt Sigma: one transformer class, two pipelines."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.pipelines import PAG
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.errors import TideError


@declared
class PixArtAdapter(DeclaredAdapter):
    """One projection of the timestep embedding serves all blocks, plus a table of six rows in each (adaLN-single).
    Where ``use_additional_conditions`` is set (alpha at 1024 pixels), resolution and aspect ratio are embedded, too."""

    spec = Spec(
        family="pixart",
        transformer="PixArtTransformer2DModel",
        models="PixArt alpha, Sigma",
        pipelines={"PixArtAlphaPipeline": (), "PixArtSigmaPipeline": ()},
        refused={"PixArtSigmaPAGPipeline": (PAG, "PixArtSigmaPipeline")},
        blocks=(Blocks(linear="/adaln_single.linear", table="scale_shift_table"),),
        embedding=Embedding("adaln_single.emb", conditioned="use_additional_conditions"),
        text=Text({"encoder_hidden_states": 0, "encoder_attention_mask": 1}),
        conditioning="size and aspect ratio (alpha at 1024 px), else none",
        guidance="unconditional, conditional",
        width="inner_dim",
        flow_matching=False,
        shifts_latents=False,
        # Both are for the published models at their own sizes.
        call_defaults={"use_resolution_binning": False, "clean_caption": False},
    )

    def check_steps(self, n_steps: int) -> None:
        """The alpha pipeline takes one step for a run of a distilled model and its scheduler."""
        super().check_steps(n_steps)
        alpha = any(each.__name__ == "PixArtAlphaPipeline" for each in type(self.pipe).__mro__)
        if n_steps == 1 and alpha and "LCM" not in type(self.pipe.scheduler).__name__:
            raise TideError("PixArt alpha draws in one step with an LCM scheduler only; give 2 steps or more")

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        """Resolution and aspect ratio as the alpha pipeline passes them, in the dtype in which it does."""
        if not self.is_conditioned:
            return {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        sizes = {"resolution": [height, width], "aspect_ratio": [height / width]}
        return {
            "added_cond_kwargs": {
                name: latents.new_tensor([size]).repeat(len(latents), 1) for name, size in sizes.items()
            }
        }
