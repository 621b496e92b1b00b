"""The reconstruction loss of a token and its gradient, one row per program (eqs 13, 14).

With e = x_hat - x, the row's sums are ``|e|^2`` and ``1 - cos(x, x_hat)``, and its gradient in x_hat is
``mse_factor e + cosine_factor (cos x_hat / |x_hat|^2 - x / (|x| |x_hat|))``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.reference import Reconstruction
from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec, without


@triton.jit
def _load(x, x_hat, b_dec, o_first_x, o_first, o_column, mask):
    """A tile of a row of x and, with its bias, of x_hat, in float32."""
    token = tl.load(x + o_first_x + o_column, mask=mask, other=0).to(tl.float32)
    rebuilt = tl.load(x_hat + o_first + o_column, mask=mask, other=0)
    if b_dec is not None:
        rebuilt += tl.load(b_dec + o_column, mask=mask, other=0).to(tl.float32)
    return token, rebuilt


@triton.jit
def reconstruction_loss_kernel(
    x,  # [n_tokens, d]
    x_hat,  # [n_tokens, d] float32, without the bias
    b_dec,  # [d] or None
    sums,  # [2, n_tokens] float32: squared errors, cosine distances
    grad,  # [n_tokens, d] or None
    error,  # [n_tokens, d] float32 or None
    d,
    stride_x,
    stride_x_hat,
    mse_factor,
    cosine_factor,
    COSINE: tl.constexpr,  # whether the cosine has a gradient
    COLUMNS: tl.constexpr,
):
    i_token = tl.program_id(0)
    o_first = i_token.to(tl.int64) * d
    o_first_x, o_first_hat = i_token.to(tl.int64) * stride_x, i_token.to(tl.int64) * stride_x_hat
    squared, own = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    other, dot = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for start in range(0, d, COLUMNS):
        o_column = start + tl.arange(0, COLUMNS)
        mask = o_column < d
        token, rebuilt = _load(x, x_hat, b_dec, o_first_x, o_first_hat, o_column, mask)
        squared += (rebuilt - token) * (rebuilt - token)
        own += token * token
        other += rebuilt * rebuilt
        dot += token * rebuilt
    norm_hat = tl.sqrt(tl.sum(other, 0))
    norms = tl.sqrt(tl.sum(own, 0)) * norm_hat
    defined = norms != 0  # and not `> 0`: NaN has to show
    inverse = tl.where(defined, 1 / tl.where(defined, norms, 1), 0)
    cosine = tl.sum(dot, 0) * inverse
    tl.store(sums + i_token, tl.sum(squared, 0))
    tl.store(sums + tl.num_programs(0) + i_token, 1 - cosine)
    if (grad is not None) or (error is not None):
        pull = tl.where(defined, cosine / tl.where(defined, norm_hat * norm_hat, 1), 0)
        for start in range(0, d, COLUMNS):
            o_column = start + tl.arange(0, COLUMNS)
            mask = o_column < d
            token, rebuilt = _load(x, x_hat, b_dec, o_first_x, o_first_hat, o_column, mask)
            if error is not None:
                tl.store(error + o_first + o_column, rebuilt - token, mask=mask)
            if grad is not None:
                slope = mse_factor * (rebuilt - token)
                if COSINE:
                    slope += cosine_factor * (rebuilt * pull - token * inverse)
                tl.store(grad + o_first + o_column, slope.to(grad.dtype.element_ty), mask=mask)


def reconstruction_loss(
    x: Tensor,
    x_hat: Tensor,
    b_dec: Tensor | None,
    mse_factor: float,
    cosine_factor: float,
    grad_dtype: torch.dtype | None,
    want_error: bool,
) -> Reconstruction:
    """The sums over tokens of ``|e|^2`` and ``1 - cos``, and on request the gradient in x_hat and the error.

    Args:
        x: ``[n_tokens, d_model]``.
        x_hat: ``[n_tokens, d_model]`` float32, to which b_dec ``[d_model]`` is still to be added.
        mse_factor, cosine_factor: the factors of the two sums in the gradient. A token where x or x_hat is zero
            has distance 1 and no cosine gradient.
        grad_dtype: dtype of the gradient; None for no gradient.
        want_error: whether to return ``x_hat + b_dec - x`` as well, in float32.
    """
    n_tokens, d_model = x.shape
    x, x_hat = launch.rows_contiguous(x), launch.rows_contiguous(x_hat)
    b_dec = None if b_dec is None else launch.contiguous(b_dec)
    sums = launch.empty(2, n_tokens, dtype=torch.float32, device=x.device)
    grad = error = None
    if grad_dtype is not None:
        grad = launch.empty(n_tokens, d_model, dtype=grad_dtype, device=x.device)
    if want_error:
        error = launch.empty(n_tokens, d_model, dtype=torch.float32, device=x.device)
    config = launch.config("reconstruction_loss", x, d_model)
    launch.launch(
        reconstruction_loss_kernel,
        (n_tokens,),
        x.device,
        x,
        x_hat,
        b_dec,
        sums,
        grad,
        error,
        d_model,
        x.stride(0),
        x_hat.stride(0),
        float(mse_factor),
        float(cosine_factor),
        COSINE=cosine_factor != 0,
        COLUMNS=launch.cover(d_model, config["COLUMNS"]),
        **launch.options(config),
    )
    squared, distance = sums.sum(1).unbind()
    return Reconstruction(squared, distance, grad, error)


@triton.jit
def misfit_kernel(
    rebuilt,  # [n] float32
    error,  # [n] float32
    sums,  # [programs] float32
    grad,  # [n] or None
    n,
    factor,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    o_element = tl.arange(0, BLOCK)
    mask = o_element < n - first
    difference = tl.load(rebuilt + first + o_element, mask=mask, other=0)
    difference += tl.load(error + first + o_element, mask=mask, other=0)
    tl.store(sums + tl.program_id(0), tl.sum(difference * difference, 0))
    if grad is not None:
        tl.store(grad + first + o_element, (difference * factor).to(grad.dtype.element_ty), mask=mask)


def misfit(
    rebuilt: Tensor, error: Tensor, factor: float, grad_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """The sum of ``(rebuilt + error)^2``, both float32 of one shape, and ``factor (rebuilt + error)`` in ``grad_dtype``
    (None: no gradient)."""
    rebuilt, error = launch.contiguous(rebuilt), launch.contiguous(error)
    config = launch.config("misfit", rebuilt, rebuilt.shape[1])
    programs = launch.cdiv(rebuilt.numel(), config["BLOCK"])
    sums = launch.empty(programs, dtype=torch.float32, device=rebuilt.device)
    grad = None
    if grad_dtype is not None:
        grad = launch.empty(*rebuilt.shape, dtype=grad_dtype, device=rebuilt.device)
    launch.launch(
        misfit_kernel,
        (programs,),
        rebuilt.device,
        rebuilt,
        error,
        sums,
        grad,
        rebuilt.numel(),
        float(factor),
        BLOCK=config["BLOCK"],
        **launch.options(config),
    )
    return sums.sum(), grad


def _misfit_spec(arch: str, dtype: torch.dtype) -> Spec:
    kind = TYPES[dtype]
    signature = {"rebuilt": "*fp32", "error": "*fp32", "sums": "*fp32", "grad": f"*{kind}", "n": "i32"}
    config = static("misfit", arch, torch.float32, 1152)
    return spec(f"misfit {kind}", arch, misfit_kernel, signature | {"factor": "fp32"}, {}, config, ("n",))


def _spec(arch: str, dtype: torch.dtype) -> Spec:
    kind = TYPES[dtype]
    signature = {"x": f"*{kind}", "x_hat": "*fp32", "b_dec": f"*{kind}", "sums": "*fp32", "grad": f"*{kind}"}
    signature |= {"error": "*fp32", "d": "i32", "stride_x": "i32", "stride_x_hat": "i32"}
    signature |= {"mse_factor": "fp32", "cosine_factor": "fp32"}
    config = static("reconstruction_loss", arch, dtype, 1152)
    constants = {"COSINE": True, "COLUMNS": launch.cover(1152, config["COLUMNS"])}
    kernel = reconstruction_loss_kernel
    aligned = ("d", "stride_x", "stride_x_hat")
    return spec(f"reconstruction_loss {kind}", arch, kernel, signature, constants, config, aligned)


AOT = [
    make(arch, dtype)
    for make in (_spec, _misfit_spec)
    for arch in ARCHS
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
]
AOT += [without(_misfit_spec(arch, torch.bfloat16), "grad") for arch in ARCHS]
AOT += [
    without(_spec(arch, torch.bfloat16), *names, **constants)
    for arch in ARCHS
    for names, constants in (
        (("b_dec",), {}),
        (("grad",), {}),
        (("error",), {}),
        (("error",), {"COSINE": False}),
        (("b_dec", "grad", "error"), {}),
    )
]
