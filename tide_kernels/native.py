"""The compiled kernels of csrc/ as a backend: CPU, float32 and bfloat16.

The library is loaded on first use. The contracts of its primitives are those of `tide_kernels.reference` and
`tide_kernels.codes`. `pre_activations` calls oneDNN where PyTorch would use another library for float32 products.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tide_kernels import memory

# Shares of the latents above which their exact dot products cost more than a screen saves: one in bfloat16 against a
# float32 product, one in int8 against bfloat16.
_MOST_CANDIDATES, _MOST_CANDIDATES_INT8 = 0.125, 0.05
# The same where a screen's candidates are computed tile by tile, which costs less.
_MOST_CANDIDATES_INT8_ABOVE = 0.2
# The density above which int8 is not tried.
_INT8_DENSITY = 0.015
# Of a chunk's pre-activations: 16 MB of float32, which stay in a common third-level cache.
_CHUNK_ELEMENTS = 2**22
_FOLDER = Path(__file__).parent
_PURE = "this is the pure-Python build, made without torch"
_REBUILD = "run pip install --no-build-isolation --no-deps --force-reinstall . in the source folder"


class Layout(NamedTuple):
    """The places of a code ordered by latent, as `scatter` and `backward_latents` walk them."""

    offsets: Tensor  # [n_latents + 1] int64: latent l owns the places offsets[l]:offsets[l + 1] of both
    tokens: Tensor  # [used places] int32, ascending within a latent
    slots: Tensor  # [used places] int32: the column of `values`


@cache
def _library() -> ctypes.CDLL | str:
    """The loaded library, or the reason why there is none."""
    # The variable names a library that was built separately, for example by csrc/sanitize.sh.
    named = os.environ.get("TIDE_NATIVE_LIBRARY")
    found = [Path(named)] if named else sorted(_FOLDER.glob("_native_cpu*"))
    if not found:
        compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
        return _not_built("cpu", _PURE if _pure() else "it found no torch" if compiler else "no C++ compiler")
    try:
        torch.ops.load_library(str(found[0]))
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"{found[0].name} cannot be loaded: {' '.join(str(error).split())}; {_REBUILD}"
    library.tide_native_isa.restype = library.tide_native_error.restype = ctypes.c_char_p
    reason = library.tide_native_error()
    return reason.decode() if reason else library


def _pure() -> bool:
    """Whether what is installed is the wheel for any platform."""
    try:
        return "Tag: py3-none-any" in (distribution("tide-sae").read_text("WHEEL") or "")
    except PackageNotFoundError:
        return False


def _not_built(name: str, otherwise: str) -> str:
    """Why a library is missing: what setup.py wrote down when its build failed, or another reason."""
    if sys.platform == "win32":
        return "there are no compiled kernels for Windows, whose compiler lacks GCC's vector extensions"
    note = _FOLDER / f"_failed_{name}.txt"
    failed = note.is_file()
    return f"not built: {f'its build failed: {note.read_text().strip()}' if failed else otherwise}; {_REBUILD}"


@cache
def cuda_unavailable() -> str | None:
    """Why the library's CUDA operators (select, keep_top_) cannot serve, or None."""
    if torch.version.cuda is None:
        return "this PyTorch is not built for CUDA"
    if unavailable() is not None:  # the schema is in the CPU library
        return unavailable()
    found = sorted(_FOLDER.glob("_native_cuda*"))
    if not found:
        return _not_built("cuda", "no nvcc was found, or a torch without CUDA")
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"{found[0].name} cannot be loaded: {' '.join(str(error).split())}; {_REBUILD}"
    return None


def unavailable() -> str | None:
    """Why this backend cannot run on this machine at all, or None."""
    library = _library()
    return library if isinstance(library, str) else None


def instruction_set() -> str | None:
    """The variant that runs: "avx512bf16", "avx512", "avx2" or "generic"; None where none can."""
    library = _library()
    return None if isinstance(library, str) else library.tide_native_isa().decode()


def refuses(device: torch.device, dtype: torch.dtype, n_latents: int, k: int) -> str | None:
    """Why this backend cannot serve such a problem, or None."""
    if device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {device.type}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it serves float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if n_latents >= 2**31 - 64:
        return f"{n_latents} latents are too many for int32 indices"
    return None


def dense_above(device: torch.device) -> float:
    """The density k / n_latents above which dense products beat gathers."""
    # Whole `tide_loss` steps, float32, one thread of a Zen 5 EPYC, torch 2.13: at 0.6, the densest measured, gathers
    # take 0.7 of the dense regime's time for d_model = 1152, n_latents = 4608 and half of it for 192 and 3072.
    return 0.6


def pre_activations(x_mod: Tensor, W_enc: Tensor, b_enc: Tensor | None) -> Tensor:
    """``x_mod W_enc^T + b_enc``."""
    onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if onednn and x_mod.dtype == torch.float32 and len(x_mod):
        # PyTorch gives float32 products to MKL, which withholds its AVX-512 kernels from other makers' processors.
        # oneDNN supports only some strides, and reads a bias as if it were contiguous.
        bias = None if b_enc is None else b_enc.contiguous()
        return torch.ops.mkldnn._linear_pointwise(_whole_rows(x_mod), _whole_rows(W_enc), bias, "none", [], "")
    return F.linear(x_mod, W_enc, b_enc)


def select_product(x_mod: Tensor, W_enc: Tensor, b_enc: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """``select(pre_activations(x_mod, W_enc, b_enc), k)``.

    Where it pays, most latents are ruled out by an int8 or bfloat16 product and a bound of its error, and only the
    others are computed in float32: the selection is exact, as that of any float32 product, up to the order of sums.
    """
    n_tokens, (n_latents, d_model) = len(x_mod), W_enc.shape
    density = k / n_latents
    values = torch.empty(n_tokens, k, dtype=x_mod.dtype)
    indices = torch.empty(n_tokens, k, dtype=torch.int32)
    done = 0
    if x_mod.dtype == torch.float32 and _screening_pays(n_tokens, d_model, density):
        shares = (_MOST_CANDIDATES_INT8 if density <= _INT8_DENSITY else 0.0, _MOST_CANDIDATES)
        done = torch.ops.tide_native.screened(x_mod, W_enc, b_enc, *shares, values, indices)
    chunk = max(2, _CHUNK_ELEMENTS // n_latents)
    for start in range(done, n_tokens, chunk):
        rows = slice(start, start + chunk)
        values[rows], indices[rows] = select(pre_activations(x_mod[rows], W_enc, b_enc), k)
    return values, indices


def code_above(
    x_mod: Tensor, W_enc: Tensor, b_enc: Tensor | None, threshold: Tensor, group: Tensor | None, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``select_above(pre_activations(x_mod, W_enc, b_enc), threshold, group, None, capacity)``.

    As `select_product`, but what a screen leaves is compared with its thresholds at once, tile by tile, so that no
    product is kept.
    """
    n_tokens, (n_latents, d_model) = len(x_mod), W_enc.shape
    values = memory.empty((n_tokens, capacity), x_mod.dtype)
    indices = memory.empty((n_tokens, capacity), torch.int32)
    count = torch.empty(n_tokens, dtype=torch.int32)
    done = 0
    if x_mod.dtype == torch.float32 and _screening_pays(n_tokens, d_model):
        shares = (_MOST_CANDIDATES_INT8_ABOVE, _MOST_CANDIDATES)
        done = torch.ops.tide_native.screened_above(
            x_mod, W_enc, b_enc, threshold, group, *shares, values, indices, count
        )
    chunk = max(2, _CHUNK_ELEMENTS // n_latents)
    for start in range(done, n_tokens, chunk):
        rows = slice(start, start + chunk)
        pre, groups = pre_activations(x_mod[rows], W_enc, b_enc), None if group is None else group[rows]
        values[rows], indices[rows], count[rows] = select_above(pre, threshold, groups, None, capacity)
    return values, indices, count


def _screening_pays(n_tokens: int, d_model: int, density: float = 0.0) -> bool:
    """Whether a screen is expected to take less time than a float32 product and its selection.

    Whole selections, two threads of a Zen 4 EPYC, torch 2.13 (`python -m benchmarks.cpu_bars`, benchmarks/NOTES.md).
    """
    return _fast_bfloat16() and n_tokens >= 64 and d_model >= 128 and density <= 0.07


@cache
def _fast_bfloat16() -> bool:
    library = _library()
    return not isinstance(library, str) and bool(library.tide_native_fast_bfloat16())


def _whole_rows(tensor: Tensor) -> Tensor:
    """The matrix itself if its rows are contiguous and do not overlap, else a copy."""
    apart = tensor.stride(1) == 1 and tensor.stride(0) >= tensor.shape[1]
    return tensor if apart else tensor.contiguous()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`, in memory that is kept when it is freed."""
    return memory.empty(shape, dtype)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.zeros`, in memory that is kept when it is freed."""
    return memory.zeros(shape, dtype)


def select(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return torch.ops.tide_native.select(pre, k)


def keep_top_(pre: Tensor, k: int) -> None:
    torch.ops.tide_native.keep_top_(pre, k)


def select_above(
    pre: Tensor, threshold: Tensor, group: Tensor | None, cut: Tensor | None, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.tide_native.select_above(pre, threshold, group, cut, capacity)


def keep_above(pre: Tensor, threshold: Tensor, group: Tensor | None, cut: Tensor | None, out: Tensor) -> Tensor:
    return torch.ops.tide_native.keep_above(pre, threshold, group, cut, out)


def key_histogram_(pre: Tensor, counts: Tensor, shift: int, high: Tensor | None) -> None:
    torch.ops.tide_native.key_histogram_(pre, counts, shift, high)


def count_equal(pre: Tensor, value: Tensor) -> Tensor:
    return torch.ops.tide_native.count_equal(pre, value)


def gather(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return torch.ops.tide_native.gather(values, indices, W)


def sampled(rows: Tensor, W: Tensor, indices: Tensor) -> Tensor:
    return torch.ops.tide_native.sampled(rows, W, indices)


def transpose(indices: Tensor, n_latents: int) -> Layout:
    return Layout(*torch.ops.tide_native.transpose(indices, n_latents))


def pair_differences(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.tide_native.pair_differences(values, indices)


def scatter(values: Tensor, layout: Layout, rows: Tensor, out: Tensor) -> None:
    torch.ops.tide_native.scatter(values, *layout, rows, out)


def backward_latents(
    values: Tensor,
    indices: Tensor,
    layout: Layout,
    grad: Tensor,
    x_mod: Tensor,
    W_dec: Tensor,
    extra: Tensor | None,
    grad_W_dec: Tensor | None,
    grad_W_enc: Tensor | None,
    grad_b_enc: Tensor | None,
    W_enc: Tensor | None = None,
    start: float | None = None,
    squares: Tensor | None = None,
) -> Tensor:
    return torch.ops.tide_native.backward_latents(
        values, *layout, grad, x_mod, W_dec, extra, grad_W_dec, grad_W_enc, grad_b_enc, W_enc, start, squares
    )


def add_near_places(
    grad_values: Tensor,
    u: Tensor,
    indices: Tensor,
    layout: Layout,
    threshold: Tensor,
    group: Tensor | None,
    bandwidth: float,
    sums: Tensor,
    near: Tensor,
) -> None:
    torch.ops.tide_native.add_near_places(grad_values, u, *layout, threshold, group, bandwidth, sums, near)


walks = True  # `backward_latents` also takes W_enc, start and squares


def norm(gradients: Sequence[Tensor], known: float = 0.0) -> float:
    """The Euclidean norm of float32, contiguous gradients, and of others whose squares add up to ``known``."""
    return torch.ops.tide_native.norm(gradients, known) if gradients else math.sqrt(known)


def adamw_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lrs: Sequence[float],
    *,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
    divisor: float = 1.0,
) -> None:
    """A step of AdamW with decoupled weight decay, in one pass over each parameter's memory.

    With g a gradient over ``divisor``, m and v its moments, t its step, which goes up by one, and lr its rate::

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        W = (1 - lr weight_decay) W - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    All tensors are float32 and contiguous, the steps scalars.
    """
    torch.ops.tide_native.adamw_(
        parameters, gradients, exp_avgs, exp_avg_sqs, steps, lrs, *betas, weight_decay, eps, divisor
    )
    torch.autograd.graph.increment_version(parameters)
