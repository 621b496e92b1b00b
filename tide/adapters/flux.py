"""Flux: double-stream blocks, then single-stream blocks, over latents packed two by two."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from tide.adapters import schedule
from tide.adapters.adaln import SIXTHS, copied_modulation
from tide.adapters.base import Block, Chunk, Text, TokenView, check_tensor, check_text_encoder
from tide.adapters.guidance import Guidance
from tide.adapters.joint import FirstTokens, JointAdapter
from tide.adapters.registry import register
from tide.adapters.weights import present
from tide.errors import TideError
from tide.sae.modulation import Modulation

#: A token of the transformer is a square of latents of this side.
_PACK = 2


@register(FluxTransformer2DModel, known_pipelines=True)
class FluxAdapter(JointAdapter):
    """Blocks are numbered consecutively: first the double-stream ones, then the single-stream ones; both return (text,
    image).

    A single-stream block adds attention and feed-forward in one projection behind one norm: it has only an output to
    hook, and one modulation for both chunks. The timestep embedding gets the projected pooled prompt added, and in
    guidance-distilled models (dev) the embedded guidance scale. Latents are unpacked ``[B, c, h, w]`` everywhere
    outside of the transformer.

    Kontext's reference pictures follow the image in the stream, as tokens whose first coordinate is not 0; they do not
    count as image tokens. If pictures are concatenated to the latents as channels (Fill, Control), the pipeline draws
    and is edited like any other, but :meth:`denoise` raises, because it has no pictures.
    """

    family = "flux"
    flow_matching = True
    timestep_unit = (0.0, 1 / 1000)
    #: The guidance scale that :meth:`encode_prompts` gives a distilled model; the pipeline's default.
    guidance_scale = 3.5

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def _is_single(self, block: int) -> bool:
        return block >= len(self.transformer.transformer_blocks)

    def hook_module(self, block: int, tensor: str = "output") -> nn.Module:
        index = self.resolve_block(block)
        if tensor != "output" and self._is_single(index):
            check_tensor(tensor, read=True)
            raise TideError(f"block {index} is a single-stream block, which has no {tensor} of its own; use output")
        return super().hook_module(index, tensor)

    def token_grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        return latent_height // _PACK, latent_width // _PACK

    def token_view(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TokenView:
        arguments = self.arguments(args, kwargs)
        places = arguments.get("img_ids")
        if places is None:
            return self
        reference = (places[..., 0] != 0).reshape(-1, arguments["hidden_states"].shape[1])[0]
        n_references = int(reference.sum())
        return FirstTokens(self, len(reference) - n_references) if n_references else self

    def grid_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
        places = self.arguments(args, kwargs).get("img_ids")
        if places is None:
            return None
        reference, row, _ = places.reshape(-1, places.shape[-2], 3)[0].unbind(1)
        own = row[reference == 0]
        # Counted: in bfloat16 the numbers of rows above 256 are not exact.
        columns = int((own == 0).sum())
        if not columns or len(own) % columns:
            return None
        return len(own) // columns, columns

    @torch.no_grad()
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        arguments = self.arguments(args, kwargs)
        embed, pooled = self.transformer.time_text_embed, arguments["pooled_projections"]
        with present(self.transformer, embed):
            added = embed.text_embedder(pooled).float()
            guidance = arguments.get("guidance")
            if guidance is None:
                return added
            waves = embed.time_proj(guidance.to(self.dtype) * 1000)
            return added + embed.guidance_embedder(waves.to(pooled.dtype)).float()

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        index = self.modulated_block(block, chunk, next_block)
        module: Any = self.blocks[index]
        single = self._is_single(index)
        shift, scale = SIXTHS["msa" if single else chunk]
        embed = self.transformer.time_text_embed
        offset, factor = self.timestep_unit
        return copied_modulation(
            self.transformer,
            embed.time_proj,
            embed.timestep_embedder,
            (module.norm if single else module.norm1).linear,
            d_model=self.d_model,
            scale=scale,
            shift=shift,
            conditioned=True,
            timestep=(1000 * offset, 1000 * factor),  # the model multiplies its input by 1000
        )

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """No call holds both kinds of rows: guidance is embedded, and true guidance is a separate call."""
        return torch.ones(batch_size, dtype=torch.bool)

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        """All rows; none in a call on the second text that this run encoded, which is the negative prompt. A text that
        the run did not encode is the prompt's, because callbacks can replace only that one."""
        arguments = self.arguments(args, kwargs)
        text = arguments["encoder_hidden_states"]
        places = [i for i, (embeds, *_) in enumerate(guidance.texts) if embeds is text]
        if len(places) > 1:
            raise TideError(
                "prompt_embeds and negative_prompt_embeds are one and the same tensor, so which call is the prompt's "
                "is not known; pass a clone of one of them"
            )
        return torch.full((len(arguments["hidden_states"]),), places in ([], [0]))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """``encoder_hidden_states [B, L, c]`` and ``pooled_projections [B, p]``, in the transformer's dtype, and for
        distilled models ``guidance [B]``, which is :attr:`guidance_scale`.

        L is ``max_sequence_length``, by default the pipeline's own (512).
        """
        check_text_encoder(self.pipe)
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, pooled, _ = self.pipe.encode_prompt(list(prompts), **length)
        text = {"encoder_hidden_states": embeds.to(self.dtype), "pooled_projections": pooled.to(self.dtype)}
        if self.transformer.config.guidance_embeds:
            text["guidance"] = torch.full((len(embeds),), self.guidance_scale, device=embeds.device)
        return text

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """``latents`` and the prediction are ``[B, c, h, w]``."""
        self.check_latents_alone(_PACK**2)
        latents = latents.to(self.device, self.dtype)
        grid = self.token_grid(*latents.shape[-2:])
        text = {name: value.to(latents.device) for name, value in text.items()}
        velocity = self.transformer(
            hidden_states=pack(latents),
            timestep=self.given_timestep(timestep, latents).to(self.dtype),
            img_ids=_positions(grid).to(latents),
            txt_ids=latents.new_zeros(text["encoder_hidden_states"].shape[1], 3),
            return_dict=False,
            **text,
        )[0]
        return unpack(velocity, grid).float()

    @property
    def latent_channels(self) -> int:
        """Channels of unpacked latents: a token holds four of each, a square of 2 x 2."""
        return super().latent_channels // _PACK**2

    @property
    def default_latents(self) -> tuple[int, int]:
        side = int(self.pipe.default_sample_size)
        return side, side

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        scheduler = self.pipe.scheduler
        rows, columns = self.token_grid(*self.default_latents)
        arguments: dict[str, Any] = schedule.resolution_shift(scheduler, rows * columns, max_shift=1.15)
        if not getattr(scheduler.config, "use_flow_sigmas", False):
            arguments["sigmas"] = np.linspace(1, 1 / n_steps, n_steps)
        return arguments

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n_steps: int,
        guidance_scale: float,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        """``guidance_scale`` is the embedded one; true guidance is ``true_cfg_scale`` and ``negative_prompt`` among
        ``kwargs``, which go to the pipeline. Returns unpacked latents."""
        scale = self.pixels_per_latent
        own = (side * scale for side in self.default_latents)
        height, width = (kwargs.get(name) or side for name, side in zip(("height", "width"), own, strict=True))
        if "max_area" in inspect.signature(type(self.pipe).__call__).parameters:
            # Kontext fits every size to this area; the size asked for is drawn instead.
            kwargs = {"max_area": height * width, **kwargs, "height": height, "width": width}
        packed = super().generate(
            prompts, n_steps=n_steps, guidance_scale=guidance_scale, generators=generators, **kwargs
        )
        rows, columns = self.token_grid(height // scale, width // scale)
        if packed.shape[1] != rows * columns:
            raise TideError(
                f"{type(self.pipe).__name__} drew {packed.shape[1]} tokens and not {rows} x {columns}; give pictures "
                "of the size that is drawn, and _auto_resize=False where the pipeline has it"
            )
        return unpack(packed, (rows, columns))

    def unpacked(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        return unpack(latents, (size[0] // _PACK, size[1] // _PACK))


def pack(latents: Tensor) -> Tensor:
    """Latents ``[B, c, h, w]`` to tokens ``[B, h/2 * w/2, 4c]``, row-major, each c times its 2 x 2 square.

    Args:
        latents: h and w even.
    """
    return nn.functional.pixel_unshuffle(latents, _PACK).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`pack` for ``grid = (h/2, w/2)``.

    Args:
        tokens: ``[B, h/2 * w/2, 4c]``.
        grid: rows and columns of the tokens.
    """
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), _PACK)


def _positions(grid: tuple[int, int]) -> Tensor:
    """``[tokens, 3]``: 0, row and column of each token."""
    rows, columns = (torch.arange(n) for n in grid)
    place = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(place[:, :1]), place], dim=1)
