"""Image tokens inside what a module gets or returns, for every :data:`~tide.adapters.spec.Place`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.adapters.spec import Blocks, Place
from tide.errors import TideError


@dataclass(frozen=True)
class Places:
    """Where the image tokens of one list of blocks are during one call.

    Attributes:
        blocks: the list.
        n_tokens: of the image that is drawn; None where the call does not say.
        n_images: tokens of that image and of reference pictures behind it.
    """

    blocks: Blocks
    n_tokens: int | None = None
    n_images: int | None = None

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        """``[B, n_tokens, d_model]`` of ``output``: without text, and without tokens of reference pictures."""
        tokens = _found(output, self._place(tensor), self.n_images)
        return tokens if self._is_all(tokens) else tokens[:, : self.n_tokens]

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        """``output`` with these tokens replaced by ``x``, and all others as they were."""
        place = self._place(tensor)
        tokens = _found(output, place, self.n_images)
        whole = x if self._is_all(tokens) else torch.cat([x, tokens[:, self.n_tokens :]], dim=1)
        return _put(output, whole, place)

    def _is_all(self, tokens: Tensor) -> bool:
        return self.n_tokens is None or tokens.shape[1] <= self.n_tokens

    def _place(self, tensor: str) -> Place:
        named: Mapping[str, Place] = {
            "output": self.blocks.output,
            "attention": self.blocks.attention_output,
            "attention_input": self.blocks.attention_input,
            "feed_forward": self.blocks.feed_forward_output,
            "feed_forward_input": self.blocks.feed_forward_input,
        }
        return named[tensor]


def _found(output: Any, place: Place, n_images: int | None) -> Tensor:
    found: Tensor
    if place == "text, image":
        found = output[1]
    elif place == "image, text":
        found = output[0]
    elif place == "map":
        found = output.flatten(2).transpose(1, 2)
    elif place == "heads":
        found = output.flatten(2)
    elif place == "text + image":
        found = output[:, output.shape[1] - _known(n_images) :]
    elif place == "image + text":
        found = output[:, : _known(n_images)]
    else:
        found = output
    return found


def _known(n_images: int | None) -> int:
    if n_images is None:
        raise TideError("where the image tokens are depends on the call; use tap, or token_views of the call")
    return n_images


def _put(output: Any, x: Tensor, place: Place) -> Any:
    if place == "text, image":
        return (output[0], x, *output[2:])
    if place == "image, text":
        return (x, *output[1:])
    if place == "map":
        return x.transpose(1, 2).reshape(output.shape)
    if place == "heads":
        return x.reshape(output.shape)
    if place == "text + image":
        return torch.cat([output[:, : output.shape[1] - x.shape[1]], x], dim=1)
    if place == "image + text":
        return torch.cat([x, output[:, x.shape[1] :]], dim=1)
    return x
