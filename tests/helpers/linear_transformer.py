"""A tiny transformer in float64 that is linear behind its first block, with its adapter and a TIDE of that block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tide.adapters import Adapter
from tide.sae import TIDE, TIDEConfig
from tide.sae.modulation import Modulation

D, N = 8, 24


class Block(nn.Module):
    def __init__(self, bends: bool) -> None:
        super().__init__()
        self.mix, self.bends = nn.Linear(D, D), bends

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mix(x)) if self.bends else x + self.mix(x.mean(1, keepdim=True)) - 0.3 * x


class Transformer(nn.Module):
    """Tokens are single latents; the prompt and the timestep are added to them."""

    dtype = torch.float64

    def __init__(self, bends_after: bool) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, D), nn.Linear(D, 4)
        self.blocks = nn.ModuleList([Block(True), Block(bends_after)])

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        x = self.enter(hidden_states.flatten(2).transpose(1, 2)) + prompt[:, None] + timestep[:, None, None] / 1000
        for block in self.blocks:
            x = block(x)
        return self.leave(x).transpose(1, 2).unflatten(2, hidden_states.shape[2:])


class LinearAdapter(Adapter):
    family = "linear"

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.blocks)

    @property
    def d_model(self) -> int:
        return D

    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        return None

    def modulation(self, *args: Any, **kwargs: Any) -> Modulation:
        raise NotImplementedError

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        return torch.ones(batch_size, dtype=torch.bool)

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """A vector for each prompt, by its length."""
        rows = [torch.randn(D, generator=torch.Generator().manual_seed(len(each))) for each in prompts]
        return {"prompt": torch.stack(rows).double()}

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Mapping[str, Tensor]) -> Tensor:
        """In float64, unlike those of the families."""
        return self.transformer(latents.double(), timestep=self.given_timestep(timestep, latents), **text)


def linear_adapter(*, bends_after: bool = False) -> LinearAdapter:
    """``bends_after``: the block behind the TIDE's is not linear either."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = Transformer(bends_after).double()
    return LinearAdapter(SimpleNamespace(transformer=transformer, _execution_device="cpu"))


def linear_tide(**options: Any) -> TIDE:
    """Of the first block; several latents of each token are active."""
    return TIDE(TIDEConfig(D, N, 6, block=0, **options), seed=1).double().eval()
