"""The Triton backend: CUDA and ROCm GPUs, and Triton's interpreter for tests.

Each file holds a family of primitives: first the kernels, then the functions that launch them. The contracts are
those of `tide_kernels.reference`. `configs` has the launch configurations, `specs` what is compiled ahead of time.
"""

from __future__ import annotations

import torch

from tide_kernels.triton import launch
from tide_kernels.triton.code_terms import code_slopes, pair_differences, soft_count
from tide_kernels.triton.dense import add_product_, code_sums, decode_dense
from tide_kernels.triton.encode import encode, pre_activations, single_launch
from tide_kernels.triton.encoder_gradients import encoder_gradients, encoder_gradients_pay
from tide_kernels.triton.gather import add_gather_, gather, sampled
from tide_kernels.triton.loss import misfit, reconstruction_loss
from tide_kernels.triton.masked_gradient import masked_gradient
from tide_kernels.triton.modulate import modulate
from tide_kernels.triton.modulation_gradients import modulation_gradients
from tide_kernels.triton.select import keep_top_, keep_top_with_sums_, select
from tide_kernels.triton.threshold import count_equal, keep_above, select_above
from tide_kernels.triton.threshold_gradient import add_near_places, near_gradient
from tide_kernels.triton.threshold_histogram import key_histogram_, rank_histogram_
from tide_kernels.triton.transpose import backward_latents, scatter, transpose, transpose_selected

__all__ = [
    "add_gather_",
    "add_near_places",
    "add_product_",
    "backward_latents",
    "code_slopes",
    "code_sums",
    "count_equal",
    "decode_dense",
    "dense_above",
    "encode",
    "encoder_gradients",
    "encoder_gradients_pay",
    "gather",
    "keep_above",
    "keep_top_",
    "keep_top_with_sums_",
    "key_histogram_",
    "masked_gradient",
    "misfit",
    "modulate",
    "modulation_gradients",
    "near_gradient",
    "only_by_name",
    "pair_differences",
    "pre_activations",
    "rank_histogram_",
    "reconstruction_loss",
    "refuses",
    "sampled",
    "scatter",
    "select",
    "select_above",
    "single_launch",
    "soft_count",
    "transpose",
    "transpose_selected",
    "unavailable",
]

_MOST_LATENTS = 2**20  # offsets within a tile of 128 rows are 32 bits wide


def unavailable() -> str | None:
    """Why this backend cannot run on this machine at all, or None."""
    if launch.INTERPRETED or torch.cuda.is_available():
        return None
    return "there is no CUDA or ROCm device (TRITON_INTERPRET=1, set before Python starts, runs tests without one)"


def only_by_name() -> str | None:
    """Why "auto" passes this backend over although it can run, or None."""
    return "kernels run in Triton's interpreter here, for tests: ask for it by name" if launch.INTERPRETED else None


def refuses(device: torch.device, dtype: torch.dtype, n_latents: int, k: int) -> str | None:
    """Why this backend cannot serve such a problem, or None."""
    if dtype == torch.float64:
        return "it has no float64 kernels: use float32 or backend='reference'"
    if n_latents > _MOST_LATENTS:
        return f"it serves at most {_MOST_LATENTS} latents: use backend='reference'"
    if launch.INTERPRETED:
        if dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly: use float16 or float32 for tests"
        return None
    if device.type != "cuda":
        return f"tensors are on {device}: move them to a CUDA or ROCm device"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or above: use backend='reference'"
    return None


def dense_above(device: torch.device) -> float:
    """The density k / n_latents above which masked matrix products beat gathers."""
    # An H200 breaks even at 0.8 % of 18432 latents (benchmarks/NOTES.md). Of fewer, such as dead ones, it does so
    # earlier: the ordering of places and the launches cost the same.
    return 0.006
