"""HunyuanDiT: blocks with long skips, modulated by a shift alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import HunyuanDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor, nn

from tide.adapters.adaln import copied_modulation
from tide.adapters.base import Adapter, Block, Chunk, Text, check_text_encoder, halves
from tide.adapters.registry import register
from tide.adapters.weights import present
from tide.errors import TideError
from tide.sae.modulation import Modulation

#: Tokens of the prompt for BERT and for T5, as in the pipeline.
_LENGTHS = (77, 256)
#: Side, in pixels, of the images to whose grid of positions all others are fitted.
_BASE_SIZE = 512
#: The original size of the image that the pipeline tells the model by default.
_ORIGINAL_SIZE = (1024, 1024)


@register(HunyuanDiT2DModel, known_pipelines=True)
class HunyuanDiTAdapter(Adapter):
    """The outputs of the first half of the blocks also enter the second half by long skips: an edit there changes
    both paths. The feed-forward is not modulated.

    A vector made of the pooled T5 embeddings and, up to version 1.1, of image sizes and a style is added to the
    timestep embedding.
    """

    family = "hunyuan"
    shifts_latents = False
    call_defaults: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False}

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.blocks)

    @property
    def d_model(self) -> int:
        return int(self.transformer.inner_dim)

    @torch.no_grad()
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        arguments = self.arguments(args, kwargs)
        embed = self.transformer.time_extra_emb
        with present(self.transformer, embed):
            parts = [embed.pooler(arguments["encoder_hidden_states_t5"])]
            if embed.use_style_cond_and_image_meta_size:
                sizes = embed.size_proj(arguments["image_meta_size"].reshape(-1)).to(parts[0])
                parts += [sizes.reshape(len(parts[0]), -1), embed.style_embedder(arguments["style"])]
            return embed.extra_embedder(torch.cat(parts, dim=1)).float()

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        module: Any = self.blocks[self.modulated_block(block, chunk, next_block)]
        if chunk == "mlp":
            raise TideError("HunyuanDiT's feed-forward is not modulated; use chunk 'msa'")
        embed = self.transformer.time_extra_emb
        return copied_modulation(
            self.transformer,
            embed.time_proj,
            embed.timestep_embedder,
            module.norm1.linear,
            d_model=self.d_model,
            scale=None,
            shift=0,
            conditioned=True,
        )

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Under guidance the pipeline calls the transformer with [unconditional, conditional] rows."""
        return halves(batch_size, do_cfg, conditional="last")

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """Embeddings, in the transformer's dtype, and masks of BERT and of T5: ``encoder_hidden_states [B, 77, c]``,
        ``text_embedding_mask [B, 77]``, and with ``_t5`` ``[B, 256, c']`` and ``[B, 256]``.

        The model fixes both lengths; ``max_sequence_length`` has no effect.
        """
        check_text_encoder(self.pipe)
        text = {}
        for i, length in enumerate(_LENGTHS):
            embeds, _, mask, _ = self.pipe.encode_prompt(
                list(prompts),
                dtype=self.dtype,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                text_encoder_index=i,
            )
            end = "_t5" if i else ""
            text[f"encoder_hidden_states{end}"] = embeds.to(self.dtype)
            text[f"text_embedding_mask{end}"] = mask
        return text

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The learned variance is dropped."""
        latents = latents.to(self.device, self.dtype)
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        sizes = latents.new_tensor([[*_ORIGINAL_SIZE, height, width, 0, 0]]).repeat(len(latents), 1)
        prediction = self.transformer(
            latents,
            self.given_timestep(timestep, latents).to(latents.dtype),
            image_meta_size=sizes,
            style=torch.zeros(len(latents), dtype=torch.int64, device=latents.device),
            image_rotary_emb=self._positions(self.token_grid(*latents.shape[-2:]), latents.device),
            return_dict=False,
            **{name: value.to(latents.device) for name, value in text.items()},
        )[0]
        return prediction[:, : self.latent_channels].float()

    def _positions(self, grid: tuple[int, int], device: torch.device) -> Any:
        """Rotary positions of ``grid``, its longer side fitted to the base size's and the other centred in it."""
        base = _BASE_SIZE // 8 // self.transformer.config.patch_size
        fitted = [round(base / max(grid) * side) for side in grid]
        first = [round((base - side) / 2) for side in fitted]
        last = [start + side for start, side in zip(first, fitted, strict=True)]
        return get_2d_rotary_pos_embed(
            self.transformer.inner_dim // self.transformer.num_heads,
            (tuple(first), tuple(last)),
            grid,
            device=device,
            output_type="pt",
        )

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n_steps: int,
        guidance_scale: float,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        """``kwargs`` go to the pipeline, which fixes the length of its prompts."""
        kwargs.pop("max_sequence_length", None)
        return super().generate(
            prompts, n_steps=n_steps, guidance_scale=guidance_scale, generators=generators, **kwargs
        )
