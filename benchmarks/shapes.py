"""The shapes that are measured, and the tensors of a problem of a given shape."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from tide_kernels import LossWeights
from tide_kernels.dead import bucket_for

# All terms, including the auxiliary one, with weights of the size that training uses.
ALL_TERMS = LossWeights(mse=1.0, cosine=1.0, temporal=0.1, sparsity=1.0, auxk=1 / 32)
MSE = LossWeights(mse=1.0, cosine=0.0)

DEAD_EVERY = 8  # one latent in so many is dead
GROUPS = 64  # timestep groups of a batch of the paper's size


@dataclass(frozen=True)
class Shape:
    n_tokens: int
    d_model: int
    n_latents: int
    k: int

    def __str__(self) -> str:
        return f"N{self.n_tokens}-d{self.d_model}-n{self.n_latents}-k{self.k}"

    @property
    def density(self) -> float:
        return self.k / self.n_latents

    def with_tokens(self, n_tokens: int) -> Shape:
        return Shape(n_tokens, self.d_model, self.n_latents, self.k)


_STEPS_SMALL = [
    Shape(1024, 192, 3072, 154),  # the demo's step: the bundled pipeline at 5 %
    Shape(256, 1152, 4608, 32),  # PixArt's width, few active latents
    Shape(256, 1152, 4608, 230),  # PixArt's width at 5 %
]
_STEPS = [
    Shape(16384, 1152, 18432, 32),  # the sparse regime
    Shape(16384, 1152, 18432, 922),  # the paper's: 16 times the width, 5 % active
    Shape(16384, 1152, 73728, 256),
]
_ROWS_SMALL = [Shape(64, 1152, n, n // 20) for n in (4608, 18432, 73728)]
_ROWS = [Shape(16384, 1152, n, n // 20) for n in (4608, 18432, 73728)]


def step_shapes(device: torch.device) -> list[Shape]:
    """Training steps."""
    return _STEPS_SMALL if device.type == "cpu" else _STEPS


def row_shapes(device: torch.device) -> list[Shape]:
    """Single ops, at 5 %."""
    return _ROWS_SMALL if device.type == "cpu" else _ROWS


@dataclass
class Problem:
    """Parameters in float32, tokens in the compute dtype; the fields have the names of `tide_loss`'s arguments."""

    x: Tensor  # rows 2i and 2i + 1 are a pair
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int
    scale: Tensor
    shift: Tensor
    group: Tensor
    dead: Tensor

    @property
    def k_aux(self) -> int:
        return max(1, self.k // 2)

    @property
    def dead_bucket(self) -> int:
        """A size that holds the dead latents as in a training, known without reading them back (`make_problem`)."""
        return bucket_for(-(-len(self.W_enc) // DEAD_EVERY))

    def weights(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}

    def modulation(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "shift": self.shift}

    def first(self, n_tokens: int) -> Problem:
        """The same parameters with only the first tokens."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Problem(**parts | {"x": self.x[:n_tokens], "group": self.group[:n_tokens]})

    def take(self, rows: Tensor) -> Problem:
        """The same parameters with the tokens ``rows``."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Problem(**parts | {"x": self.x[rows], "group": self.group[rows]})


def make_problem(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Problem:
    """A problem of this shape; equal arguments make equal problems on one device. An eighth of the latents is dead, so
    the auxiliary term may use them. The decoder's bias is 0, since peers subtract it from the input."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    n_tokens, d_model, n_latents = shape.n_tokens, shape.d_model, shape.n_latents
    groups = min(GROUPS, max(1, n_tokens // 16))
    first = normal((n_tokens + 1) // 2, d_model)
    pairs = torch.stack((first, first + 0.3 * normal(*first.shape)), dim=1)
    W = F.normalize(normal(n_latents, d_model), dim=1)
    return Problem(
        x=pairs.flatten(0, 1)[:n_tokens].to(dtype),
        W_enc=W,
        b_enc=0.1 * normal(n_latents),
        W_dec=W.clone(),
        b_dec=torch.zeros(d_model, device=device),
        k=shape.k,
        scale=0.1 * normal(groups, d_model),
        shift=0.1 * normal(groups, d_model),
        group=torch.arange(n_tokens, device=device) * groups // n_tokens,  # a sample's tokens are adjacent
        dead=torch.arange(n_latents, device=device) % DEAD_EVERY == 0,
    )


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 (autocast) on a GPU, float32 on a CPU, for every contender alike."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16
