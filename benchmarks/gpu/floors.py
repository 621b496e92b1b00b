"""The floor of a kernel on this device: its work (`benchmarks.work`) over ceilings measured in the same process."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.floors import Ceilings, encoder_seconds, floor_of, product_seconds
from benchmarks.probes import cache_bandwidth, stream_bandwidth
from benchmarks.shapes import Shape
from benchmarks.work import BY_GROUP, KERNELS, Case, Work, encode, sampled, scatter

_CPU_CACHE = 2**25  # bytes; only dry runs use it


def ceilings(shape: Shape, device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Products: the fastest of PyTorch's own at this shape. Memory: a copy. Gathers: reads that the L2 cache serves."""
    products = [encoder_seconds(shape, device, dtype), *product_seconds(shape, device, dtype).values()]
    flops = 2 * shape.n_tokens * shape.d_model * shape.n_latents / min(products)
    on_gpu = device.type == "cuda"
    l2 = torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else _CPU_CACHE
    return Ceilings(flops, stream_bandwidth(device), l2, cache_bandwidth(device))


def kernel_seconds(name: str, case: Case, device: torch.device, dtype: torch.dtype) -> float:
    """The floor of a primitive by its name."""
    return floor_of(WORKS[name](case), ceilings(case.shape, device, dtype)).seconds


# Beside those of `benchmarks.work`, fusions, and primitives that no step of the Triton backend runs alone.
WORKS: dict[str, Callable[[Case], Work]] = {
    **KERNELS,
    "encoder_gradients": KERNELS[BY_GROUP],
    "keep_top_with_sums_": KERNELS["keep_top_"],
    "transpose_selected": KERNELS["transpose"],
    "sampled": sampled,
    "scatter": scatter,
    "encode": encode,
}
