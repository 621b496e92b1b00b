"""The gradients of scale and shift from that of x_mod: sums over the tokens of each group, in one pass.

``grad_shift_g += sum over group g of grad`` and ``grad_scale_g += sum over group g of grad u``. Tokens are ordered by
group first, and a group's are split among a few programs, whose sums are added up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec, without

_PROGRAMS = 2048  # that keep a large GPU busy


@triton.jit(do_not_specialize=["n", "keys"])
def order_kernel(
    key,  # [n] integers from 0 to keys - 1
    order,  # [n] int32: all positions, ascending by (key, position)
    offsets,  # [keys + 1] int32: key i owns order[offsets[i]:offsets[i + 1]]
    n,
    keys,
    BLOCK: tl.constexpr,
):
    """One program a key, which reads all of them twice."""
    i_key = tl.program_id(0)
    below = 0
    for start in range(0, n, BLOCK):
        o_place = start + tl.arange(0, BLOCK)
        found = tl.load(key + o_place, mask=o_place < n, other=0).to(tl.int32)
        below += tl.sum(((found < i_key) & (o_place < n)).to(tl.int32), 0)
    tl.store(offsets + i_key, below)
    place = below
    for start in range(0, n, BLOCK):
        o_place = start + tl.arange(0, BLOCK)
        found = tl.load(key + o_place, mask=o_place < n, other=0).to(tl.int32)
        own = (found == i_key) & (o_place < n)
        ones = own.to(tl.int32)
        tl.store(order + place + tl.cumsum(ones, 0) - 1, o_place, mask=own)
        place += tl.sum(ones, 0)
    if i_key == keys - 1:
        tl.store(offsets + keys, place)


def ordered(key: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """All positions of ``key [n]``, ascending by (key, position), and where each of the ``keys`` keys begins, int32."""
    n = len(key)
    order = launch.empty(n, dtype=torch.int32, device=key.device)
    offsets = launch.empty(keys + 1, dtype=torch.int32, device=key.device)
    config = launch.config("order", key, n)
    block = {"BLOCK": config["BLOCK"]}
    key = launch.contiguous(key)
    launch.launch(order_kernel, (keys,), key.device, key, order, offsets, n, keys, **block, **launch.options(config))
    return order, offsets


@triton.jit(do_not_specialize=["n_tokens"])
def modulation_gradients_kernel(
    grad,  # [n_tokens, d] float32
    u,  # [n_tokens, d] or None
    order,  # [n_tokens] int32 or None: a single group
    offsets,  # [groups + 1] int32 or None
    out,  # [2, splits, groups, d] float32: shift, scale; [1, ...] without u
    n_tokens,
    d,
    stride_grad,
    stride_u,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_group, i_split = tl.program_id(0), tl.program_id(1)
    groups, splits = tl.num_programs(0), tl.num_programs(1)
    o_column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < d
    begin = 0
    end = n_tokens
    if order is not None:
        begin = tl.load(offsets + i_group)
        end = tl.load(offsets + i_group + 1)
    size = tl.cdiv(end - begin, splits)
    first = begin + i_split * size
    last = tl.minimum(first + size, end)
    shift = tl.zeros([PLACES, COLUMNS], tl.float32)
    scale = tl.zeros([PLACES, COLUMNS], tl.float32)
    for start in range(first, last, PLACES):
        o_entry = start + tl.arange(0, PLACES)
        m_entry = o_entry < last
        i_token = o_entry
        if order is not None:
            i_token = tl.load(order + o_entry, mask=m_entry, other=0)
        mask = m_entry[:, None] & m_column[None, :]
        p_grad = grad + i_token.to(tl.int64)[:, None] * stride_grad + o_column[None, :]
        slope = tl.load(p_grad, mask=mask, other=0)
        shift += slope
        if u is not None:
            p_u = u + i_token.to(tl.int64)[:, None] * stride_u + o_column[None, :]
            scale += slope * tl.load(p_u, mask=mask, other=0).to(tl.float32)
    p_out = out + (i_split * groups + i_group).to(tl.int64) * d + o_column
    tl.store(p_out, tl.sum(shift, 0), mask=m_column)
    if u is not None:
        tl.store(p_out + (splits * groups).to(tl.int64) * d, tl.sum(scale, 0), mask=m_column)


def modulation_gradients(
    grad: Tensor, u: Tensor | None, group: Tensor | None, grad_scale: Tensor | None, grad_shift: Tensor | None
) -> None:
    """Adds to grad_scale and grad_shift, float32 ``[groups, d_model]``, those that follow from ``grad``, float32
    ``[n_tokens, d_model]``. u, x or LayerNorm(x), may be None without grad_scale; group: int64, None for one group."""
    table = grad_shift if grad_shift is not None else grad_scale
    n_tokens, d_model = grad.shape
    if table is None or not n_tokens:
        return
    grad, u = launch.rows_contiguous(grad), None if u is None else launch.rows_contiguous(u)
    order, offsets = (None, None) if group is None else ordered(group, len(table))
    config = launch.config("modulation_gradients", grad, d_model)
    columns = launch.cover(d_model, config["COLUMNS"])
    tiles, groups = launch.cdiv(d_model, columns), len(table)
    splits = max(1, min(_PROGRAMS // (groups * tiles), n_tokens // (groups * config["PLACES"])))
    out = launch.empty(1 if u is None else 2, splits, groups, d_model, dtype=torch.float32, device=grad.device)
    launch.launch(
        modulation_gradients_kernel,
        (groups, splits, tiles),
        grad.device,
        grad,
        u,
        order,
        offsets,
        out,
        n_tokens,
        d_model,
        grad.stride(0),
        0 if u is None else u.stride(0),
        PLACES=config["PLACES"],
        COLUMNS=columns,
        **launch.options(config),
    )
    _add_parts(out, grad_scale, grad_shift)


@triton.jit(do_not_specialize=["splits"])
def add_parts_kernel(
    parts,  # as `out` above
    grad_scale,  # [groups, d] float32 or None, as the next
    grad_shift,
    size,  # groups d
    splits,
    BLOCK: tl.constexpr,
):
    """Adds the sums of a group's programs in their order."""
    o_element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = o_element < size
    if grad_shift is not None:
        shift = tl.zeros([BLOCK], tl.float32)
        for i_split in range(splits):
            shift += tl.load(parts + tl.cast(i_split, tl.int64) * size + o_element, mask=mask)
        tl.store(grad_shift + o_element, tl.load(grad_shift + o_element, mask=mask) + shift, mask=mask)
    if grad_scale is not None:
        scale = tl.zeros([BLOCK], tl.float32)
        for i_split in range(splits, 2 * splits):
            scale += tl.load(parts + tl.cast(i_split, tl.int64) * size + o_element, mask=mask)
        tl.store(grad_scale + o_element, tl.load(grad_scale + o_element, mask=mask) + scale, mask=mask)


def _add_parts(parts: Tensor, grad_scale: Tensor | None, grad_shift: Tensor | None) -> None:
    _, splits, groups, d_model = parts.shape
    config = launch.config("add_parts", parts, d_model)
    launch.launch(
        add_parts_kernel,
        (launch.cdiv(groups * d_model, config["BLOCK"]),),
        parts.device,
        parts,
        grad_scale,
        grad_shift,
        groups * d_model,
        splits,
        BLOCK=config["BLOCK"],
        **launch.options(config),
    )


def _spec(arch: str, dtype: torch.dtype) -> Spec:
    kind = TYPES[dtype]
    config = static("modulation_gradients", arch, torch.float32, 1152)
    signature = {"grad": "*fp32", "u": f"*{kind}", "order": "*i32", "offsets": "*i32", "out": "*fp32"}
    strides = ("d", "stride_grad", "stride_u")
    signature |= {name: "i32" for name in ("n_tokens", *strides)}
    constants = {"COLUMNS": launch.cover(1152, config["COLUMNS"])}
    name, kernel = f"modulation_gradients {kind}", modulation_gradients_kernel
    return spec(name, arch, kernel, signature, constants, config, strides)


def _parts_spec(arch: str) -> Spec:
    config = static("add_parts", arch, torch.float32, 1152)
    signature = {"parts": "*fp32", "grad_scale": "*fp32", "grad_shift": "*fp32", "size": "i32", "splits": "i32"}
    return spec("modulation_gradients: parts", arch, add_parts_kernel, signature, {}, config, ("size",))


def _order_spec(arch: str, kind: str) -> Spec:
    config = static("order", arch, torch.int64, 16384)
    signature = {"key": kind, "order": "*i32", "offsets": "*i32", "n": "i32", "keys": "i32"}
    return spec(f"order {kind.removeprefix('*')}", arch, order_kernel, signature, {}, config)


AOT = [
    *(_order_spec(arch, kind) for arch in ARCHS for kind in ("*i64", "*u8")),
    *(_spec(arch, dtype) for arch in ARCHS for dtype in TYPES),
    *(_parts_spec(arch) for arch in ARCHS),
]
AOT += [
    without(record, *names)
    for arch in ARCHS
    for record, names in (
        (_spec(arch, torch.bfloat16), ("u",)),
        (_spec(arch, torch.bfloat16), ("order", "offsets")),
        (_parts_spec(arch), ("grad_scale",)),
        (_parts_spec(arch), ("grad_shift",)),
    )
]
