"""Sana: linear attention over deeply compressed latents, modulated by adaLN-single as PixArt is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from tide.adapters.adaln import SIXTHS, copied_modulation
from tide.adapters.base import Adapter, Block, Chunk, Text, check_text_encoder, halves
from tide.adapters.registry import register
from tide.adapters.weights import present
from tide.errors import TideError
from tide.sae.modulation import Modulation


@register(SanaTransformer2DModel, known_pipelines=True)
class SanaAdapter(Adapter):
    """Blocks hold image tokens only; their feed-forward is a convolution and returns ``[B, d_model, rows, columns]``.

    One projection of the timestep embedding serves all blocks, plus a table of six rows in each. Models with
    ``guidance_embeds`` add the embedded guidance scale. The angular timesteps of Sana-Sprint are not supported.
    """

    family = "sana"
    flow_matching = True
    shifts_latents = False
    call_defaults: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False, "clean_caption": False}
    #: The guidance scale that :meth:`encode_prompts` gives a model with ``guidance_embeds``; the pipeline's default.
    guidance_scale = 4.5

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        scheduler = type(getattr(pipe, "scheduler", None)).__name__
        if scheduler == "SCMScheduler":
            raise TideError(
                "Sana-Sprint's schedule (SCMScheduler) is not supported; use a Sana model that was not distilled for it"
            )
        self.timestep_unit = (0.0, float(self.transformer.config.timestep_scale))

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.transformer_blocks)

    @property
    def d_model(self) -> int:
        config = self.transformer.config
        return int(config.num_attention_heads * config.attention_head_dim)

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        return output.flatten(2).transpose(1, 2) if tensor in ("feed_forward", "feed_forward_input") else output

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        return x.transpose(1, 2).reshape(output.shape) if tensor == "feed_forward" else x

    @torch.no_grad()
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        guidance = self.arguments(args, kwargs).get("guidance")
        if guidance is None:
            return None
        embed = self.transformer.time_embed
        with present(self.transformer, embed.guidance_embedder):
            return embed.guidance_embedder(embed.guidance_condition_proj(guidance).to(self.dtype)).float()

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        module: Any = self.blocks[self.modulated_block(block, chunk, next_block)]
        shift, scale = SIXTHS[chunk]
        embed, with_guidance = self.transformer.time_embed, bool(self.transformer.config.guidance_embeds)
        time = embed if with_guidance else embed.emb
        return copied_modulation(
            self.transformer,
            time.time_proj,
            time.timestep_embedder,
            embed.linear,
            d_model=self.d_model,
            scale=scale,
            shift=shift,
            table_of=module,
            conditioned=with_guidance,
            timestep=self.timestep_unit,
        )

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Under guidance the pipeline calls the transformer with [unconditional, conditional] rows."""
        return halves(batch_size, do_cfg, conditional="last")

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """``encoder_hidden_states [B, L, c]``, in the transformer's dtype, ``encoder_attention_mask [B, L]``, and
        ``guidance [B]`` for models that embed it.

        Prompts follow the instruction that the pipeline puts before them by default. L is ``max_sequence_length``, by
        default the pipeline's own (300).
        """
        check_text_encoder(self.pipe)
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        call = inspect.signature(type(self.pipe).__call__).parameters
        embeds, mask, *_ = self.pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            complex_human_instruction=call["complex_human_instruction"].default,
            **length,
        )
        text = {"encoder_hidden_states": embeds.to(self.dtype), "encoder_attention_mask": mask}
        if self.transformer.config.guidance_embeds:
            scale = self.guidance_scale * self.transformer.config.guidance_embeds_scale
            text["guidance"] = torch.full((len(embeds),), scale, device=embeds.device)
        return text

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """A learned variance, where the model has one, is dropped."""
        latents = latents.to(self.device, self.dtype)
        velocity = self.transformer(
            latents,
            timestep=self.given_timestep(timestep, latents),
            return_dict=False,
            **{name: value.to(latents.device) for name, value in text.items()},
        )[0]
        return velocity[:, : self.latent_channels].float()
