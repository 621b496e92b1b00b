"""A matrix product with float32 sums: the fallback for what cuBLAS does not offer, and an alternative to it elsewhere.

`product` is ``out = a b + bias``, optionally added to what ``out`` holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.specs import ARCHS, PRECISIONS, TYPES, Spec, spec, without


@triton.jit
def tile_of(i_program, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWIZZLE: tl.constexpr):
    """The tile of a program, in bands of SWIZZLE rows of tiles, so that concurrent programs share their operands."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    band = i_program // (SWIZZLE * tiles_n)
    height = tl.minimum(tiles_m - band * SWIZZLE, SWIZZLE)
    inside = i_program - band * SWIZZLE * tiles_n
    return band * SWIZZLE + inside % height, inside // height


@triton.jit
def accumulate(
    acc,
    a,
    b,
    i_m,
    i_n,
    rows,
    columns,
    inner,
    a_row,
    a_inner,
    b_inner,
    b_column,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    A_INNER: tl.constexpr = True,
    B_INNER: tl.constexpr = True,
):
    """``acc`` plus the tile (i_m, i_n) of ``a b`` in float32; strides are named by operand and direction.

    A_INNER and B_INNER: whether the operand is contiguous in the inner dimension, and not in the other.
    """
    # 64-bit offsets are for the tile as a whole: inside it 32 bits are enough, and need half the registers.
    first_row, first_column = i_m * BLOCK_M, i_n * BLOCK_N
    o_row, o_column, o_inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_row, m_column = o_row < rows - first_row, o_column < columns - first_column
    # Rows and columns out of range read the tile's first one instead, which spares a mask: their sums are not stored.
    # Where rows or columns are contiguous, replaced offsets would hide that from the compiler, which would copy one
    # element at a time: masks instead.
    if A_INNER:
        o_row = tl.where(m_row, o_row, 0)
    if B_INNER:
        o_column = tl.where(m_column, o_column, 0)
    p_a = a + tl.cast(first_row, tl.int64) * a_row + (o_row[:, None] * a_row + o_inner[None, :] * a_inner)
    p_b = b + tl.cast(first_column, tl.int64) * b_column + (o_inner[:, None] * b_inner + o_column[None, :] * b_column)
    for start in range(0, inner, BLOCK_K):
        m_inner = o_inner < inner - start
        m_left, m_right = m_inner[None, :], m_inner[:, None]
        if not A_INNER:
            m_left &= m_row[:, None]
        if not B_INNER:
            m_right &= m_column[None, :]
        left = tl.load(p_a, mask=m_left, other=0)
        right = tl.load(p_b, mask=m_right, other=0)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        p_a += BLOCK_K * a_inner
        p_b += BLOCK_K * b_inner
    return acc


@triton.jit
def product_kernel(
    a,  # [rows, inner]
    b,  # [inner, columns]
    bias,  # [columns] or None
    out,  # [rows, columns], contiguous
    rows,
    columns,
    inner,
    a_row,
    a_inner,
    b_inner,
    b_column,
    ADD: tl.constexpr,
    A_INNER: tl.constexpr,
    B_INNER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    i_m, i_n = tile_of(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N, SWIZZLE)
    acc = accumulate(
        tl.zeros([BLOCK_M, BLOCK_N], tl.float32),
        a,
        b,
        i_m,
        i_n,
        rows,
        columns,
        inner,
        a_row,
        a_inner,
        b_inner,
        b_column,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        A_INNER,
        B_INNER,
    )
    o_row, o_column = tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (o_row < rows - i_m * BLOCK_M)[:, None] & (o_column < columns)[None, :]
    p_out = out + (i_m * BLOCK_M).to(tl.int64) * columns + (o_row[:, None] * columns + o_column[None, :])
    if bias is not None:
        acc += tl.load(bias + o_column, mask=o_column < columns, other=0).to(tl.float32)[None, :]
    if ADD:
        acc += tl.load(p_out, mask=mask, other=0).to(tl.float32)
    tl.store(p_out, acc.to(out.dtype.element_ty), mask=mask)


def product(a: Tensor, b: Tensor, out: Tensor, *, bias: Tensor | None = None, add: bool = False) -> None:
    """``out = a b + bias`` or, with ``add``, ``out += a b + bias``; operands may be transposed, out is contiguous."""
    rows, inner = a.shape
    columns = b.shape[1]
    a, b = (launch.strided(operand) for operand in (a, b))
    bias = None if bias is None else launch.contiguous(bias)
    config = launch.config("product", a, inner)
    launch.launch(
        product_kernel,
        (launch.cdiv(rows, config["BLOCK_M"]) * launch.cdiv(columns, config["BLOCK_N"]),),
        out.device,
        a,
        b,
        bias,
        out,
        rows,
        columns,
        inner,
        *a.stride(),
        *b.stride(),
        ADD=add,
        A_INNER=a.stride(1) == 1,
        B_INNER=b.stride(0) == 1,
        PRECISION=launch.dot_precision(a.dtype),
        **blocks(config),
        **launch.options(config),
    )


def blocks(config: dict[str, int]) -> dict[str, int]:
    """The tile of a matrix product."""
    return {name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "SWIZZLE")}


def has_mixed_products(tensor: Tensor) -> bool:
    """Whether PyTorch multiplies such operands into float32 without intermediate rounding."""
    return tensor.is_cuda and (tensor.dtype == torch.float32 or torch.version.hip is None)


# Whether each operand runs along the inner dimension: in x W^T + b, in z W and in z^T rows.
_RUN_ALONG_INNER = {"encode": (True, True), "decode": (True, False), "add": (False, False)}


def _spec(arch: str, dtype: torch.dtype, precision: str, layout: str) -> Spec:
    kind = TYPES[dtype]
    signature = {"a": f"*{kind}", "b": f"*{kind}", "rows": "i32", "columns": "i32", "inner": "i32"}
    signature["out"] = f"*{kind}" if layout == "encode" else "*fp32"
    constants: dict[str, object] = {"PRECISION": precision, "ADD": layout == "add"}
    constants["A_INNER"], constants["B_INNER"] = _RUN_ALONG_INNER[layout]
    for along, running, other in (("A_INNER", "a_inner", "a_row"), ("B_INNER", "b_inner", "b_column")):
        one, stride = (running, other) if constants[along] else (other, running)
        constants[one], signature[stride] = 1, "i32"
    if layout == "encode":
        signature["bias"] = f"*{kind}"
    else:
        constants["bias"] = None
    config = static("product", arch, dtype, 1152)
    aligned = tuple(
        name for name in ("rows", "columns", "inner", "a_row", "a_inner", "b_inner", "b_column") if name in signature
    )
    name = f"product {layout} {kind} {precision}"
    return spec(name, arch, product_kernel, signature, constants, config, aligned)


AOT = [
    _spec(arch, dtype, precision, layout)
    for arch in ARCHS
    for dtype, precision in PRECISIONS
    for layout in ("encode", "add")
]
AOT += [_spec(arch, torch.bfloat16, "ieee", "decode") for arch in ARCHS]
AOT += [without(_spec(arch, torch.bfloat16, "ieee", "encode"), "bias") for arch in ARCHS]
