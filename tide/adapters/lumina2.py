"""Lumina 2: text and image in one stream, modulated by the timestep alone, without a shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor, nn

from tide.adapters import schedule
from tide.adapters.adaln import QUARTERS, copied_modulation
from tide.adapters.base import Adapter, Block, Chunk, Text, TokenView, check_text_encoder
from tide.adapters.guidance import Guidance
from tide.adapters.registry import register
from tide.errors import TideError
from tide.sae.modulation import Modulation


@register(Lumina2Transformer2DModel, known_pipelines=True)
class Lumina2Adapter(Adapter):
    """Blocks are the joint ones (``layers``), not the refiners before them. Their norm is an RMSNorm with a scale only.

    A row of their output is its text, without padding, then its image, then padding up to the longest row. Guidance
    takes two calls, one for the prompt and one for the negative prompt.
    """

    family = "lumina2"
    flow_matching = True
    #: The model counts from noise (0) to image (1).
    timestep_unit = (1.0, -1 / 1000)
    modules: ClassVar[Mapping[str, str]] = {"attention": "attn", "feed_forward": "feed_forward"}

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.layers)

    @property
    def d_model(self) -> int:
        return int(self.transformer.config.hidden_size)

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        raise TideError("where Lumina 2's image tokens are depends on the call; use tap, or token_view of the call")

    def token_view(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TokenView:
        arguments = self.arguments(args, kwargs)
        rows, columns = self.token_grid(*arguments["hidden_states"].shape[-2:])
        return _AfterText(arguments["encoder_attention_mask"].sum(1), rows * columns)

    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        return None

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
            timestep=self.timestep_unit,
        )

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """No call holds both kinds of rows."""
        return torch.ones(batch_size, dtype=torch.bool)

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        """All rows; none in a call on the negative embeddings that ``encode_prompt`` returned."""
        arguments = self.arguments(args, kwargs)
        negative = any(text[2] is arguments["encoder_hidden_states"] for text in guidance.texts)
        return torch.full((len(arguments["hidden_states"]),), not negative)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """``encoder_hidden_states [B, L, c]``, in the transformer's dtype, ``encoder_attention_mask [B, L]``.

        L is ``max_sequence_length``, by default the pipeline's own (256), the system prompt included.
        """
        check_text_encoder(self.pipe)
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, mask, *_ = self.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, **length)
        return {"encoder_hidden_states": embeds.to(self.dtype), "encoder_attention_mask": mask}

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The velocity from image to noise, as the scheduler takes it: the model's own is the opposite."""
        latents = latents.to(self.device, self.dtype)
        return -self.transformer(
            hidden_states=latents,
            timestep=self.given_timestep(timestep, latents),
            return_dict=False,
            **{name: value.to(latents.device) for name, value in text.items()},
        )[0].float()

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        # The pipeline mistakes the number of latent channels for the number of tokens.
        shift = schedule.resolution_shift(self.pipe.scheduler, self.latent_channels, max_shift=1.15)
        return {"sigmas": np.linspace(1, 1 / n_steps, n_steps), **shift}


@dataclass(frozen=True)
class _AfterText:
    """Image tokens that start at ``lengths [B]``, the lengths of the texts."""

    lengths: Tensor
    n_tokens: int

    def _places(self, output: Tensor) -> Tensor:
        places = self.lengths[:, None].to(output.device) + torch.arange(self.n_tokens, device=output.device)
        return places[..., None].expand(-1, -1, output.shape[-1])

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        return output.gather(1, self._places(output))

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        return output.scatter(1, self._places(output), x)
