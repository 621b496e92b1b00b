"""Lower bounds for a step: this machine's own products, copies and gathers, timed in the same run.

A step in the dense regime needs five products and the selection; one in the sparse regime the encoder's product,
the selection and four gathers. On a CPU, whose caches serve the gathers, the sparse floor is only the product and
the selection, which any exact TopK has to do. A selection's floor is reading and writing its chunk once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import time_of
from benchmarks.probes import gather_bandwidth
from benchmarks.shapes import Shape


@dataclass(frozen=True)
class Floor:
    """Seconds, and their parts."""

    regime: str
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def fastest(runs: list[Callable[[], object]], device: torch.device) -> float:
    """The median time of the fastest of several ways to do the same thing."""
    return min(time_of(run, device).median for run in runs)


def linears(x: Tensor, W: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """PyTorch's ways to compute ``x W^T + b`` on this device."""
    found: dict[str, Callable[[], Tensor]] = {"linear": lambda: F.linear(x, W, b)}
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # PyTorch gives float32 to MKL, which is not the fastest on every processor.
        found["oneDNN linear"] = lambda: torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
    return found


@cache
def encoder_seconds(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """The encoder's product with its bias."""
    x = torch.randn(shape.n_tokens, shape.d_model, device=device).to(dtype)
    W = torch.randn(shape.n_latents, shape.d_model, device=device).to(dtype)
    b = torch.zeros(shape.n_latents, device=device, dtype=dtype)
    return fastest(list(linears(x, W, b).values()), device)


@cache
def product_seconds(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The other products of the dense regime: decode, and the gradient of a weight."""
    z = torch.randn(shape.n_tokens, shape.n_latents, device=device, dtype=dtype)
    W = torch.randn(shape.n_latents, shape.d_model, device=device).to(dtype)
    rows = torch.randn(shape.n_tokens, shape.d_model, device=device).to(dtype)
    return {"decode": time_of(lambda: z @ W, device).median, "weight": time_of(lambda: z.T @ rows, device).median}


@cache
def select_seconds(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Reading and writing the pre-activations once."""
    pre = torch.zeros(shape.n_tokens, shape.n_latents, device=device, dtype=dtype)
    out = torch.empty_like(pre)
    return time_of(lambda: out.copy_(pre), device).median


@cache
def step_floors(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Floor, Floor]:
    """The floors of the dense and of the sparse regime."""
    encode, select = encoder_seconds(shape, device, dtype), select_seconds(shape, device, dtype)
    products = product_seconds(shape, device, dtype)
    dense = Floor(
        "dense",
        {
            "encode": encode,
            "select": select,
            "decode": products["decode"],
            "d latents": encode,  # the same shape as the encoder's
            "d weights": 2 * products["weight"],
        },
    )
    sparse = {"encode": encode, "select": select}
    if device.type != "cpu":
        moved = 4 * shape.n_tokens * shape.k * shape.d_model * dtype.itemsize
        sparse["gathers"] = moved / gather_bandwidth(shape.n_latents, shape.d_model, shape.k, device, dtype)
    return dense, Floor("sparse", sparse)


def step_floor(shape: Shape, device: torch.device, dtype: torch.dtype) -> Floor:
    """The lower of the two."""
    return min(step_floors(shape, device, dtype), key=lambda floor: floor.seconds)
