"""Stable Diffusion 3 and 3.5: text and image in two streams, modulated by timestep and pooled prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from tide.adapters import schedule
from tide.adapters.adaln import SIXTHS, copied_modulation
from tide.adapters.base import Block, Chunk, Text, check_text_encoder, halves
from tide.adapters.guidance import Guidance
from tide.adapters.joint import JointAdapter
from tide.adapters.registry import register
from tide.adapters.weights import present
from tide.sae.modulation import Modulation


@register(SD3Transformer2DModel, known_pipelines=True)
class SD3Adapter(JointAdapter):
    """The blocks of 3.5 may have a second attention, whose chunks follow the six usual ones of the projection.

    The projected pooled prompt is added to the timestep embedding. The third call of skip-layer guidance, away from
    which guidance steers, counts as unconditional.
    """

    family = "sd3"
    flow_matching = True

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.transformer_blocks)

    @torch.no_grad()
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        pooled = self.arguments(args, kwargs)["pooled_projections"]
        embedder = self.transformer.time_text_embed.text_embedder
        with present(self.transformer, embedder):
            return embedder(pooled).float()

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        module: Any = self.blocks[self.modulated_block(block, chunk, next_block)]
        shift, scale = SIXTHS[chunk]
        embed = self.transformer.time_text_embed
        return copied_modulation(
            self.transformer,
            embed.time_proj,
            embed.timestep_embedder,
            module.norm1.linear,
            d_model=self.d_model,
            scale=scale,
            shift=shift,
            conditioned=True,
        )

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Under guidance the pipeline calls the transformer with [unconditional, conditional] rows."""
        return halves(batch_size, do_cfg, conditional="last")

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        arguments = self.arguments(args, kwargs)
        if arguments.get("skip_layers") is not None:
            return torch.zeros(len(arguments["hidden_states"]), dtype=torch.bool)
        return super().conditional_of(args, kwargs, guidance)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """``encoder_hidden_states [B, L, c]`` and ``pooled_projections [B, p]``, in the transformer's dtype.

        L is CLIP's length plus ``max_sequence_length`` for T5, by default the pipeline's own (256).
        """
        check_text_encoder(self.pipe)
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, None, do_classifier_free_guidance=False, **length
        )
        return {"encoder_hidden_states": embeds.to(self.dtype), "pooled_projections": pooled.to(self.dtype)}

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        self.check_latents_alone()
        latents = latents.to(self.device, self.dtype)
        return self.transformer(
            hidden_states=latents,
            timestep=self.given_timestep(timestep, latents),
            return_dict=False,
            **{name: value.to(latents.device) for name, value in text.items()},
        )[0].float()

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        rows, columns = self.token_grid(*self.default_latents)
        return schedule.resolution_shift(self.pipe.scheduler, rows * columns, max_shift=1.16)
