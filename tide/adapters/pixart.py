"""PixArt alpha and PixArt Sigma: one transformer class, two pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn

from tide.adapters.adaln import SIXTHS, copied_modulation
from tide.adapters.base import Adapter, Block, Chunk, Text, check_text_encoder, halves
from tide.adapters.registry import register
from tide.adapters.weights import present
from tide.errors import TideError
from tide.sae.modulation import Modulation


@register(PixArtTransformer2DModel, known_pipelines=True)
class PixArtAdapter(Adapter):
    """Blocks hold image tokens only, modulated by adaLN-single: one projection of the timestep embedding for
    all blocks, plus a table of six rows in each. Where ``use_additional_conditions`` is set (alpha at 1024
    pixels), resolution and aspect ratio are embedded and added to the timestep embedding."""

    family = "pixart"
    shifts_latents = False
    #: Both are for the published models at their own sizes.
    call_defaults: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False, "clean_caption": False}

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.transformer_blocks)

    @property
    def d_model(self) -> int:
        return int(self.transformer.inner_dim)

    @torch.no_grad()
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        if not self.transformer.use_additional_conditions:
            return None
        arguments = self.arguments(args, kwargs)
        batch_size = len(arguments["hidden_states"])
        sizes = arguments["added_cond_kwargs"]
        emb = self.transformer.adaln_single.emb
        parts = []
        embedders = {"resolution": emb.resolution_embedder, "aspect_ratio": emb.aspect_ratio_embedder}
        with present(self.transformer, *embedders.values()):
            for name, embedder in embedders.items():
                waves = emb.additional_condition_proj(sizes[name].flatten())
                parts.append(embedder(waves.to(self.dtype)).reshape(batch_size, -1))
        return torch.cat(parts, dim=1).float()

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        module: Any = self.blocks[self.modulated_block(block, chunk, next_block)]
        shift, scale = SIXTHS[chunk]
        adaln = self.transformer.adaln_single
        return copied_modulation(
            self.transformer,
            adaln.emb.time_proj,
            adaln.emb.timestep_embedder,
            adaln.linear,
            d_model=self.d_model,
            scale=scale,
            shift=shift,
            table_of=module,
            conditioned=self.transformer.use_additional_conditions,
        )

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Under guidance the pipelines call the transformer with [unconditional, conditional] rows."""
        return halves(batch_size, do_cfg, conditional="last")

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """``encoder_hidden_states [B, L, c]``, in the transformer's dtype, ``encoder_attention_mask [B, L]``.

        L is ``max_sequence_length``, by default the pipeline's own (120 for alpha, 300 for Sigma).
        """
        check_text_encoder(self.pipe)
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, mask, _, _ = self.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, **length)
        return {"encoder_hidden_states": embeds.to(self.dtype), "encoder_attention_mask": mask}

    def check_steps(self, n_steps: int) -> None:
        """The alpha pipeline takes one step for a run of a distilled model and its scheduler."""
        super().check_steps(n_steps)
        distilled = "LCM" in type(self.pipe.scheduler).__name__
        if n_steps == 1 and isinstance(self.pipe, PixArtAlphaPipeline) and not distilled:
            raise TideError("PixArt alpha draws in one step with an LCM scheduler only; give 2 steps or more")

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The learned variance, where the model has one, is dropped."""
        latents = latents.to(self.device, self.dtype)
        prediction = self.transformer(
            latents,
            timestep=self.given_timestep(timestep, latents),
            added_cond_kwargs=self._sizes(latents),
            return_dict=False,
            **{name: value.to(latents.device) for name, value in text.items()},
        )[0]
        return prediction[:, : self.latent_channels].float()

    def _sizes(self, latents: Tensor) -> dict[str, Tensor | None]:
        """Resolution and aspect ratio as the alpha pipeline passes them, in the dtype in which it does."""
        if not self.transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        return {
            "resolution": latents.new_tensor([[height, width]]).repeat(len(latents), 1),
            "aspect_ratio": latents.new_tensor([[height / width]]).repeat(len(latents), 1),
        }
