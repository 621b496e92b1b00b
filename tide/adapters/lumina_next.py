"""Lumina-Next: image tokens only, modulated by timestep and pooled prompt, without a shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

from tide.adapters.adaln import QUARTERS, copied_modulation
from tide.adapters.base import Adapter, Block, Chunk, Text, check_text_encoder, halves
from tide.adapters.registry import register
from tide.adapters.weights import present
from tide.sae.modulation import Modulation

#: Side of the grid of positions that the pipeline passes to the model, which uses a corner of it.
_POSITIONS = 384


@register(LuminaNextDiT2DModel, known_pipelines=True)
class LuminaNextAdapter(Adapter):
    """Blocks use an RMSNorm with a scale only. The output of their attention is per head, before the projection that it
    shares with the cross-attention; its heads are concatenated here.

    The prompt's mean embedding is projected and added to the timestep embedding.
    """

    family = "lumina_next"
    flow_matching = True
    shifts_latents = False
    #: The model counts from noise (0) to image (1).
    timestep_unit = (1.0, -1 / 1000)
    modules: ClassVar[Mapping[str, str]] = {"attention": "attn1", "feed_forward": "feed_forward"}
    call_defaults: ClassVar[Mapping[str, Any]] = {"clean_caption": False}

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.layers)

    @property
    def d_model(self) -> int:
        return int(self.transformer.hidden_size)

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        return output.flatten(2)

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        return x.reshape(output.shape)

    @torch.no_grad()
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        arguments = self.arguments(args, kwargs)
        embeds = arguments["encoder_hidden_states"]
        mask = arguments["encoder_mask"].float().unsqueeze(-1)
        pooled = (embeds * mask).sum(1) / mask.sum(1)
        embedder = self.transformer.time_caption_embed.caption_embedder
        with present(self.transformer, embedder):
            return embedder(pooled.to(embeds)).float()

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        module: Any = self.blocks[self.modulated_block(block, chunk, next_block)]
        embed = self.transformer.time_caption_embed
        return copied_modulation(
            self.transformer,
            embed.time_proj,
            embed.timestep_embedder,
            module.norm1.linear,
            d_model=self.d_model,
            scale=QUARTERS[chunk],
            shift=None,
            conditioned=True,
            timestep=self.timestep_unit,
        )

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Under guidance the pipeline calls the transformer with [conditional, unconditional] rows."""
        return halves(batch_size, do_cfg, conditional="first")

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """``encoder_hidden_states [B, L, c]``, in the transformer's dtype, and ``encoder_mask [B, L]``.

        L is ``max_sequence_length``, by default the pipeline's limit (256). The pipeline pads to the longest prompt of
        its batch; masked tokens change nothing.
        """
        check_text_encoder(self.pipe)
        embeds, mask, *_ = self.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        padding = (max_sequence_length or self.pipe.max_sequence_length) - embeds.shape[1]
        return {
            "encoder_hidden_states": nn.functional.pad(embeds.to(self.dtype), (0, 0, 0, padding)),
            "encoder_mask": nn.functional.pad(mask, (0, padding)),
        }

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The velocity from image to noise, as the scheduler takes it: the model's own is the opposite. The learned
        variance is dropped."""
        latents = latents.to(self.device, self.dtype)
        steps = self.given_timestep(timestep, latents)
        velocity = self.transformer(
            hidden_states=latents,
            timestep=steps,
            image_rotary_emb=self._positions(latents, at_the_end=bool(steps[0] >= 1)),
            cross_attention_kwargs={"base_sequence_length": (self.pipe.default_image_size // 16) ** 2},
            return_dict=False,
            **{name: value.to(latents.device) for name, value in text.items()},
        )[0]
        return -velocity[:, : self.latent_channels].float()

    def _positions(self, latents: Tensor, *, at_the_end: bool) -> Tensor:
        """Rotary positions, stretched where the image is larger than the pipeline's own size: linearly, and in
        frequency from the pipeline's watershed on, which by default is the very end."""
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        stretch = (height * width) ** 0.5 / self.pipe.default_image_size
        linear, frequency = (1.0, stretch) if at_the_end else (stretch, 1.0)
        return get_2d_rotary_pos_embed_lumina(
            self.transformer.head_dim, _POSITIONS, _POSITIONS, linear_factor=linear, ntk_factor=frequency
        )
