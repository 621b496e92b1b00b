"""HunyuanVideo 1.5: double-stream blocks over the tokens of a clip, guided by a component of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.errors import TideError

#: The texts of the language model and, of what prompts quote, of ByT5, in the order in which the pipeline encodes them.
_TEXTS = [(end, part) for end in ("", "_2") for part in ("hidden_states", "attention_mask")]


@declared
class HunyuanVideo15Adapter(DeclaredAdapter):
    """The transformer gets, beside the latents, as many channels of a picture and a mask, which are zero without one,
    and the tokens of a picture, which it masks out where all are zero."""

    spec = Spec(
        family="hunyuan_video15",
        transformer="HunyuanVideo15Transformer3DModel",
        models="HunyuanVideo 1.5",
        pipelines={"HunyuanVideo15Pipeline": ()},
        refused={"HunyuanVideo15ImageToVideoPipeline": ("its picture sets the size that it draws", None)},
        blocks=(Blocks(output="image, text", attention="attn", attention_output="image, text"),),
        embedding=Embedding("time_embed"),
        text=Text(
            {f"encoder_{part}{end}": i for i, (end, part) in enumerate(_TEXTS)},
            arguments={},
            length=None,
            count="batch_size",
        ),
        guidance="two calls",
        draws="videos",
        result="frames",
        channels="out_channels",
        rounds_timestep=True,
        sigmas=True,
        notes=(
            "Guidance is by the pipeline's guider, which has to be ClassifierFreeGuidance; generate sets its scale.",
            "The pipeline fixes the length of prompts.",
        ),
    )

    def __init__(self, pipe: Any, component: str = "transformer") -> None:
        super().__init__(pipe, component)
        guider = type(getattr(pipe, "guider", None)).__name__
        if guider not in ("NoneType", "ClassifierFreeGuidance"):
            raise TideError(f"{guider} makes calls of its own; set pipe.guider = diffusers.ClassifierFreeGuidance()")

    def check_latents_alone(self) -> None:
        """The further channels are zero."""

    def packed(self, latents: Tensor) -> Tensor:
        return torch.cat([latents, torch.zeros_like(latents), torch.zeros_like(latents[:, :1])], dim=1)

    def unpacked(self, latents: Tensor, size: tuple[int, ...]) -> Tensor:
        return latents[:, : self.latent_channels]

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        width = self.transformer.config.image_embed_dim
        return {"image_embeds": latents.new_zeros(len(latents), self.pipe.vision_num_semantic_tokens, width)}

    @property
    def default_latents(self) -> tuple[int, ...]:
        ratio = self.pipe.default_aspect_ratio[::-1]
        size = self.pipe.video_processor.calculate_default_height_width(*ratio, self.pipe.target_size)
        return (self.latent_frames(121), *(side // self.pixels_per_latent for side in size))

    def run_pipeline(
        self, prompts: Sequence[str], n_steps: int, guidance_scale: float | None, generators: Any, **kwargs: Any
    ) -> Tensor:
        """The pipeline takes its guidance scale from its guider."""
        guider = self.pipe.guider
        if guider is None and guidance_scale is not None:
            raise TideError("the pipeline has no guider; set pipe.guider = ClassifierFreeGuidance() of diffusers")
        self.pipe.guider = guider if guidance_scale is None else guider.new(guidance_scale=guidance_scale)
        try:
            return super().run_pipeline(prompts, n_steps, None, generators, **kwargs)
        finally:
            self.pipe.guider = guider
