"""Latte: blocks that look at the tokens of a frame, in turn with blocks that look at a place in all frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tide.adapters.base import TokenView
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.adapters.vae import encoded, vae_of


@declared
class LatteAdapter(DeclaredAdapter):
    """Even blocks are spatial, odd ones temporal."""

    spec = Spec(
        family="latte",
        transformer="LatteTransformer3DModel",
        models="Latte-1",
        pipelines={"LattePipeline": ()},
        blocks=(Blocks(linear="/adaln_single.linear", table="scale_shift_table"),),
        embedding=Embedding("adaln_single.emb"),
        text=Text(length=None),
        guidance="unconditional, conditional",
        flow_matching=False,
        draws="videos",
        size="call",
        frames="video_length",
        shifts_latents=False,
        result="frames",
        call_defaults={"clean_caption": False},
        notes=(
            "Clips have 16 frames, or one. A prompt that is drawn alone loses its padding, which others attend to.",
        ),
    )

    @property
    def blocks(self) -> list[nn.Module]:
        model = self.transformer
        pairs = zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)
        return [block for pair in pairs for block in pair]

    def kind_of(self, block: int) -> Blocks:
        return self.spec.blocks[0]

    def token_views(
        self, blocks: Iterable[int], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[int, TokenView]:
        frames, rows, columns = self.token_grid(*self.arguments(args, kwargs)["hidden_states"].shape[2:])
        return {block: _Folded(frames, rows * columns, temporal=bool(block % 2)) for block in blocks}

    @torch.no_grad()
    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Each frame alone."""
        clips = images if images.ndim == 5 else images.unsqueeze(2)
        vae = vae_of(self.pipe, "pass latents instead of images")
        latents = encoded(vae, clips.transpose(1, 2).flatten(0, 1).to(self.device), generator)
        return latents.unflatten(0, (len(clips), -1)).transpose(1, 2) * vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        frames = super().decode_latents(latents.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(latents), -1)).transpose(1, 2)


@dataclass(frozen=True)
class _Folded:
    """Tokens whose rows are the frames of each clip, or the places of each clip."""

    n_frames: int
    n_places: int
    temporal: bool

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        clips = output.unflatten(0, (-1, self.n_places if self.temporal else self.n_frames))
        return (clips.transpose(1, 2) if self.temporal else clips).flatten(1, 2)

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        clips = x.unflatten(1, (self.n_frames, self.n_places))
        return (clips.transpose(1, 2) if self.temporal else clips).flatten(0, 1)
