"""Multimodal transformers whose blocks carry text and image in two streams: what SD3 and Flux share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tide.adapters.base import INPUTS, Adapter
from tide.errors import TideError


class JointAdapter(Adapter):
    """Blocks return (text, image), where the text may be None; their attention returns (image, text)."""

    modules: ClassVar[Mapping[str, str]] = {"attention": "attn", "feed_forward": "ff"}

    @property
    def d_model(self) -> int:
        return int(self.transformer.inner_dim)

    @property
    def latent_channels(self) -> int:
        """Channels of what the transformer predicts; its input may have further ones, of pictures."""
        config = self.transformer.config
        return int(config.out_channels or config.in_channels)

    def check_latents_alone(self, latents_per_token: int = 1) -> None:
        """Raises :class:`~tide.errors.TideError` if the transformer also takes pictures as channels of its input."""
        channels = int(self.transformer.config.in_channels) // latents_per_token
        if channels != self.latent_channels:
            raise TideError(
                f"this transformer is given {channels - self.latent_channels} channels of pictures beside the latents, "
                "which noised images do not have; collect along the sampling process instead"
            )

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        if tensor == "feed_forward" or tensor in INPUTS:
            return output
        return output[1] if tensor == "output" else output[0]

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        if tensor == "feed_forward":
            return x
        return (output[0], x) if tensor == "output" else (x, *output[1:])


@dataclass(frozen=True)
class FirstTokens:
    """The first ``n_tokens`` of the tokens that are not text; those behind them are of reference pictures.

    Attributes:
        adapter: whose image tokens these are part of.
        n_tokens: of the image that is drawn.
    """

    adapter: Adapter
    n_tokens: int

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        """The first ``n_tokens`` of the adapter's image tokens of ``output``, ``[B, n_tokens, d_model]``."""
        return self.adapter.image_tokens(output, tensor)[:, : self.n_tokens]

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        """``output`` with these tokens replaced by ``x``, and those of reference pictures as they were."""
        references = self.adapter.image_tokens(output, tensor)[:, self.n_tokens :]
        return self.adapter.with_image_tokens(output, torch.cat([x, references], dim=1), tensor)
