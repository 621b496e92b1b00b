"""The floor of a kernel on this device: its work (`benchmarks.work`) over rates measured in the same process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.floors import encoder_seconds, product_seconds
from benchmarks.probes import cache_bandwidth, stream_bandwidth
from benchmarks.shapes import Shape
from benchmarks.work import BY_GROUP, KERNELS, Case, Work


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    flops: float  # of the fastest of a step's products, by PyTorch
    streamed: float  # bytes, by a copy
    cached: float  # bytes, out of the L2 cache

    @classmethod
    def measured(cls, shape: Shape, device: torch.device, dtype: torch.dtype) -> Rates:
        products = [encoder_seconds(shape, device, dtype), *product_seconds(shape, device, dtype).values()]
        flops = 2 * shape.n_tokens * shape.d_model * shape.n_latents / min(products)
        return cls(flops, stream_bandwidth(device), cache_bandwidth(device))

    def seconds(self, work: Work) -> float:
        """Arithmetic, memory and cache at the same time: the longest of the three."""
        return max(work.flops / self.flops, (work.streamed + work.table) / self.streamed, work.gathered / self.cached)


def sampled(case: Case) -> Work:
    """``<rows_i, W[indices_ij]>``: the rows of a gather, one number for each."""
    shape, e = case.shape, case.itemsize
    return Work(
        streamed=shape.n_tokens * (shape.d_model * e + shape.k * 8),
        gathered=shape.n_tokens * shape.k * shape.d_model * e,
        table=shape.n_latents * shape.d_model * e,
    )


def scatter(case: Case) -> Work:
    """``out_l += sum of values_i rows_i``: a row of tokens for each place, out read and written in float32."""
    shape, e = case.shape, case.itemsize
    return Work(
        streamed=shape.n_tokens * shape.k * (e + 8) + 8 * shape.n_latents * shape.d_model,
        gathered=shape.n_tokens * shape.k * shape.d_model * e,
        table=shape.n_tokens * shape.d_model * e,
    )


def encoder_gradients(case: Case) -> Work:
    """By group, which is the least that it takes."""
    return KERNELS[BY_GROUP](case)


# Beside those of `benchmarks.work`, the primitives that no step of the Triton backend runs alone.
WORKS: dict[str, Callable[[Case], Work]] = {
    **KERNELS,
    "encoder_gradients": encoder_gradients,
    "sampled": sampled,
    "scatter": scatter,
}
