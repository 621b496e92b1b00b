"""Which argument of a transformer carries the latents, how large they are, and how many tokens they may become."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from tide.adapters.packing import PACK, pack, unpack
from tide.errors import TideError
from tide.probing.recording import Run
from tide.probing.values import close

#: Sides of a token in latents that are tried.
PATCHES = (1, 2, 4)


@dataclass(frozen=True)
class Geometry:
    """Of the latents of one run.

    Attributes:
        argument: of the transformer that carries them.
        size: rows and columns, of a clip frames before them.
        packed: the transformer gets squares of 2 x 2 latents as tokens.
        patch: side of a token in latents.
    """

    argument: str
    size: tuple[int, ...]
    packed: bool
    patch: int

    @property
    def grid(self) -> tuple[int, ...]:
        return *self.size[:-2], self.size[-2] // self.patch, self.size[-1] // self.patch

    @property
    def n_tokens(self) -> int:
        return prod(self.grid)

    def corner(self) -> Tensor:
        """Bool ``[n_tokens]``: the tokens that :meth:`with_corner` changes."""
        side = max(1, PACK // self.patch)
        there = torch.zeros(self.grid, dtype=torch.bool)
        there[..., -side:, -side:] = True
        return there.flatten()

    def with_corner(self, latents: Tensor) -> Tensor:
        """The argument with its last 2 x 2 latents changed."""
        unpacked = unpack(latents, self.grid) if self.packed else latents.clone()  # type: ignore[arg-type]
        unpacked[..., -PACK:, -PACK:] += 3.0
        return pack(unpacked) if self.packed else unpacked


def latents_argument(run: Run) -> tuple[str, Tensor]:
    """The argument that holds what the scheduler steps, in a run without guidance."""
    if not run.passes or not run.steps:
        raise TideError("the pipeline did not run its transformer and its scheduler; give one that draws from a prompt")
    sample = run.steps[0]["sample"]
    found = [
        name
        for name, value in run.passes[0].arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point() and close(value, sample.to(value.dtype))
    ]
    if not found:
        raise TideError(
            f"no argument of the transformer is the latents {list(sample.shape)} that the scheduler steps, so they "
            "enter in a way of their own; write the adapter by hand (docs/adapters.md)"
        )
    return found[0], run.passes[0].arguments[found[0]]


def geometries(argument: str, given: Tensor, expected: tuple[int, int], config: Any) -> list[Geometry]:
    """What the latents may be as tokens, the likeliest first; ``expected`` rows and columns of unpacked latents."""
    if given.ndim == 3:
        return [Geometry(argument, expected, True, PACK)] if given.shape[1] == prod(expected) // PACK**2 else []
    size = tuple(given.shape[2:])
    own = config.get("patch_size")
    patches = dict.fromkeys([own, *PATCHES] if isinstance(own, int) else PATCHES)
    return [Geometry(argument, size, False, patch) for patch in patches if not any(side % patch for side in size[-2:])]
