"""Lumina 2: text and image in one stream, modulated by the timestep alone, without a shift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import TokenView
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import QUARTERS, Blocks, Embedding, Spec, Text
from tide.errors import TideError


@declared
class Lumina2Adapter(DeclaredAdapter):
    """Blocks are the joint ones (``layers``), not the refiners before them. A row of their output is its text, without
    padding, then its image, then padding up to the longest row."""

    spec = Spec(
        family="lumina2",
        transformer="Lumina2Transformer2DModel",
        models="Lumina 2",
        pipelines={"Lumina2Pipeline": (), "Lumina2Text2ImgPipeline": ()},
        blocks=(Blocks("layers", "text + image", "attn", "feed_forward", chunks=QUARTERS),),
        embedding=Embedding("time_caption_embed"),
        text=Text({"encoder_hidden_states": 0, "encoder_attention_mask": 1}),
        guidance="two calls",
        negative=2,
        width="config.hidden_size",
        sign=-1,
        timestep_unit=(1.0, -1 / 1000),  # the model counts from noise (0) to image (1)
        sigmas=True,
        max_shift=1.15,
    )

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        raise TideError("where Lumina 2's image tokens are depends on the call; use tap, or token_views of the call")

    def token_views(
        self, blocks: Iterable[int], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[int, TokenView]:
        arguments = self.arguments(args, kwargs)
        rows, columns = self.token_grid(*arguments["hidden_states"].shape[-2:])
        return dict.fromkeys(blocks, _AfterText(arguments["encoder_attention_mask"].sum(1), rows * columns))

    def _shifted_by(self) -> int:
        """The pipeline mistakes the number of latent channels for the number of tokens."""
        return self.latent_channels


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
