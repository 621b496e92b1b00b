"""What the gradient of thresholds needs: sums of dz over the places near them, by latent and group of tokens.

A place is near where ``|pre - threshold| < bandwidth / 2``. `add_near_places` walks over the layout of a sparse code,
`near_gradient` over a dense chunk whose product is cuBLAS's. The latter goes through the tokens group by group, in
pieces, each of which has a row in a table of partial sums. No sum depends on the order in which programs run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.layout import PIECE, Layout
from tide_kernels.triton.select import check_rows
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec
from tide_kernels.triton.threshold import table_of
from tide_kernels.triton.transpose import LAYOUT, fold, partial_sums, piece_of


@triton.jit(do_not_specialize=["n"])
def near_places_kernel(
    grad_values,  # [n_tokens, capacity] float32
    u,  # [n_tokens, capacity]
    threshold,  # [groups, n] float32; [groups, 1] unless BY_LATENT
    group,  # [n_tokens] int64 or None
    tokens,
    places,
    offsets,
    pieces,
    slots,
    latent,
    out,  # [n, 2, groups] float32, zeros: sums of gradients, and counts
    table,  # [slots, 2, groups] float32
    n,
    groups,
    stride_threshold,
    half,
    BY_LATENT: tl.constexpr,
    PIECE: tl.constexpr,
    PLACES: tl.constexpr,
    GROUPS: tl.constexpr,
):
    i_piece = tl.program_id(0)
    if tl.load(latent + i_piece) < n:
        i_latent, begin, end, slot = piece_of(i_piece, latent, pieces, offsets, slots, PIECE)
        o_group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
        sums, counts = tl.zeros([GROUPS], tl.float32), tl.zeros([GROUPS], tl.float32)
        p_bound = threshold
        if BY_LATENT:
            p_bound += i_latent
        for start in range(begin, end, PLACES):
            o_entry = start + tl.arange(0, PLACES)
            m_entry = o_entry < end
            place = tl.load(places + o_entry, mask=m_entry, other=0)
            belongs = tl.zeros([PLACES], tl.int64)
            if group is not None:
                belongs = tl.load(group + tl.load(tokens + o_entry, mask=m_entry, other=0), mask=m_entry, other=0)
            bound = tl.load(p_bound + belongs * stride_threshold, mask=m_entry, other=0)
            value = tl.load(u + place, mask=m_entry, other=0).to(tl.float32)
            near = m_entry & (tl.abs(value - bound) < half)
            grad = tl.load(grad_values + place, mask=near, other=0)
            members = near[:, None] & (belongs[:, None] == o_group[None, :])
            sums += tl.sum(tl.where(members, grad[:, None], 0), 0)
            counts += tl.sum(members.to(tl.float32), 0)
        p_out = tl.where(slot < 0, out + i_latent * 2 * groups, table + slot * 2 * groups) + o_group
        tl.store(p_out, sums, mask=o_group < groups)
        tl.store(p_out + groups, counts, mask=o_group < groups)


@triton.jit(do_not_specialize=["n_tokens", "n_pieces", "groups"])
def near_gradient_kernel(
    dz,  # [n_tokens, n], the product alone; becomes the gradient of pre
    z,  # [n_tokens, n]
    pre,  # [n_tokens, n]
    threshold,  # [groups, n] float32; [groups, 1] unless BY_LATENT
    order,  # [n_tokens] int64: the tokens ordered by group; None if there is one group
    offsets,  # [groups + 1]: group g owns the tokens offsets[g]:offsets[g + 1] of this order, or None
    pieces,  # [groups + 1]: and these pieces, or None
    group,  # [n_pieces]: each piece's group, `groups` beyond the last; or None
    table,  # [4, n_pieces, n] float32, zeros: sums of dz and counts near, sums of the gradient and counts of z != 0
    n_tokens,
    n_pieces,
    groups,
    n,
    stride_threshold,
    half,
    pair_factor,
    PAIRED: tl.constexpr,
    BY_LATENT: tl.constexpr,
    TOKENS: tl.constexpr,  # of a piece
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program: a piece of tokens, and some latents."""
    i_piece = tl.program_id(0)
    i_group, begin = 0, i_piece * TOKENS
    end = tl.minimum(begin + TOKENS, n_tokens)
    if group is not None:
        i_group, begin, end = tl.load(group + i_piece), 0, 0
        if i_group < groups:
            begin = (tl.load(offsets + i_group) + (i_piece - tl.load(pieces + i_group)) * TOKENS).to(tl.int32)
            end = tl.minimum(begin + TOKENS, tl.load(offsets + i_group + 1)).to(tl.int32)
    if begin < end:
        o_latent = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        m_latent = o_latent < n
        p_bound = threshold + tl.cast(i_group, tl.int64) * stride_threshold
        if BY_LATENT:
            bound = tl.load(p_bound + o_latent, mask=m_latent, other=0)
        else:
            bound = tl.zeros([COLUMNS], tl.float32) + tl.load(p_bound)
        sums, sums_pre = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
        near, fired = tl.zeros([ROWS, COLUMNS], tl.int32), tl.zeros([ROWS, COLUMNS], tl.int32)
        for start in range(begin, end, ROWS):
            o_token = start + tl.arange(0, ROWS)
            mask = (o_token < end)[:, None] & m_latent[None, :]
            if order is not None:
                i_token = tl.load(order + o_token, mask=o_token < end, other=0)
            else:
                i_token = o_token.to(tl.int64)
            offset = i_token[:, None] * n + o_latent[None, :]
            grad = tl.load(dz + offset, mask=mask, other=0).to(tl.float32)
            code = tl.load(z + offset, mask=mask, other=0).to(tl.float32)
            value = tl.load(pre + offset, mask=mask, other=float("inf")).to(tl.float32)
            if PAIRED:
                partner = tl.load(z + (i_token ^ 1)[:, None] * n + o_latent[None, :], mask=mask, other=0)
                grad += pair_factor * (code - partner.to(tl.float32))
            close, selected = tl.abs(value - bound[None, :]) < half, code != 0
            out = tl.where(selected, grad, 0).to(dz.dtype.element_ty)
            tl.store(dz + offset, out, mask=mask)
            sums += tl.where(close, grad, 0)
            near += close.to(tl.int32)
            sums_pre += out.to(tl.float32)
            fired += selected.to(tl.int32)
        p_table, part = table + i_piece.to(tl.int64) * n + o_latent, tl.cast(n_pieces, tl.int64) * n
        tl.store(p_table, tl.sum(sums, 0), mask=m_latent)
        tl.store(p_table + part, tl.sum(near, 0).to(tl.float32), mask=m_latent)
        tl.store(p_table + 2 * part, tl.sum(sums_pre, 0), mask=m_latent)
        tl.store(p_table + 3 * part, tl.sum(fired, 0).to(tl.float32), mask=m_latent)


class Pieces(NamedTuple):
    """Tokens ordered by group, in pieces of one group each; see `near_gradient_kernel`."""

    order: Tensor
    offsets: Tensor
    pieces: Tensor
    group: Tensor


def _pieces(group: Tensor, groups: int, tokens: int) -> Pieces:
    ordered, order = group.sort(stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(groups + 1, device=group.device))
    pieces = torch.nn.functional.pad(((offsets.diff() + tokens - 1) // tokens).cumsum(0), (1, 0))
    each = torch.arange(len(group) // tokens + groups, device=group.device)
    return Pieces(order, offsets, pieces, torch.searchsorted(pieces[1:], each, right=True))


def near_gradient(
    grad: Tensor,
    W_dec: Tensor,
    z: Tensor,
    pair_factor: float,
    grad_b_enc: Tensor | None,
    fired: Tensor | None,
    pre: Tensor,
    threshold: Tensor,
    group: Tensor | None,
    bandwidth: float,
    sums: Tensor,
    near: Tensor,
) -> Tensor:
    """The gradient of ``pre [C, n]`` and the sums for the thresholds' own: `tide_kernels.thresholds.near_gradient`.

    Raises:
        ValueError: rows of sums or near overlap.
    """
    n_tokens, n_latents = z.shape
    groups = len(threshold)
    check_rows("sums", sums)
    check_rows("near", near)
    z, pre = launch.contiguous(z), launch.contiguous(pre)
    dz = grad.to(z.dtype) @ W_dec.T
    config = launch.config("near_gradient", z, n_latents)
    tokens = config["TOKENS"]
    cut = None if group is None else _pieces(launch.contiguous(group), groups, tokens)
    n_pieces = launch.cdiv(n_tokens, tokens) if cut is None else len(cut.group)
    table = torch.zeros(4, n_pieces, n_latents, dtype=torch.float32, device=z.device)
    bounds, by_latent = table_of(threshold)
    launch.launch(
        near_gradient_kernel,
        (n_pieces if n_tokens else 0, launch.cdiv(n_latents, config["COLUMNS"])),
        z.device,
        dz,
        z,
        pre,
        bounds,
        *(cut or [None] * 4),
        table,
        n_tokens,
        n_pieces,
        groups,
        n_latents,
        bounds.stride(0),
        bandwidth / 2,
        float(pair_factor),
        PAIRED=pair_factor != 0,
        BY_LATENT=by_latent,
        TOKENS=tokens,
        ROWS=config["ROWS"],
        COLUMNS=config["COLUMNS"],
        **launch.options(config),
    )
    if cut is None:
        sums += table[0].sum(0)
        near += table[1].sum(0).long()
    else:
        counts = torch.zeros_like(sums)
        fold(table[0], cut.pieces, sums, together=1)
        fold(table[1], cut.pieces, counts, together=1)
        near += counts.long()
    if grad_b_enc is not None:
        grad_b_enc += table[2].sum(0)
    if fired is not None:
        fired += table[3].sum(0).long()
    return dz


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
    """Adds, at the places of a sparse code where ``|u - threshold| < bandwidth / 2``, grad_values to ``sums [groups,
    n]`` float32 and 1 to ``near [groups, n]`` int64, in the row of the token's group.

    Raises:
        ValueError: rows of sums or near overlap.
    """
    groups, n_latents = sums.shape
    check_rows("sums", sums)
    check_rows("near", near)
    out = torch.zeros(n_latents, 2, groups, dtype=torch.float32, device=sums.device)
    table = partial_sums(layout, 2 * groups)
    bounds, by_latent = table_of(threshold)
    config = launch.config("near_places", u, n_latents)
    block = min(config["GROUPS"], triton.next_power_of_2(groups))
    launch.launch(
        near_places_kernel,
        (len(layout.latent) if indices.numel() else 0, launch.cdiv(groups, block)),
        sums.device,
        launch.contiguous(grad_values),
        launch.contiguous(u),
        bounds,
        None if group is None else launch.contiguous(group),
        *layout,
        out,
        table,
        n_latents,
        groups,
        bounds.stride(0),
        bandwidth / 2,
        BY_LATENT=by_latent,
        PIECE=PIECE,
        PLACES=config["PLACES"],
        GROUPS=block,
        **launch.options(config),
    )
    fold(table, layout.slots, out.view(n_latents, -1))
    sums += out[:, 0].T
    near += out[:, 1].T.long()


def _places_spec(arch: str, dtype: torch.dtype, groups: int, by_latent: bool) -> Spec:
    config = static("near_places", arch, dtype, 18432)
    names = ("grad_values", "threshold", *LAYOUT, "out", "table")
    signature = {name: LAYOUT.get(name, "*fp32") for name in names} | {"u": f"*{TYPES[dtype]}", "half": "fp32"}
    signature |= {"n": "i32", "groups": "i32", "stride_threshold": "i32"}
    constants: dict[str, object] = {"BY_LATENT": by_latent, "PIECE": PIECE}
    constants["GROUPS"] = min(config["GROUPS"], triton.next_power_of_2(groups))
    if groups > 1:
        signature["group"] = "*i64"
    else:
        constants["group"] = None
    name = f"near_places {TYPES[dtype]} groups={groups}{' by latent' * by_latent}"
    return spec(name, arch, near_places_kernel, signature, constants, config, ("stride_threshold",))


def _gradient_spec(arch: str, dtype: torch.dtype, grouped: bool, paired: bool, by_latent: bool) -> Spec:
    config = static("near_gradient", arch, dtype, 18432)
    signature = dict.fromkeys(("dz", "z", "pre"), f"*{TYPES[dtype]}") | {"threshold": "*fp32", "table": "*fp32"}
    signature |= dict.fromkeys(("n_tokens", "n_pieces", "groups", "n", "stride_threshold"), "i32")
    signature |= {"half": "fp32", "pair_factor": "fp32"}
    constants: dict[str, object] = {"PAIRED": paired, "BY_LATENT": by_latent}
    pieces = Pieces._fields
    if grouped:
        signature |= dict.fromkeys(pieces, "*i64")
    else:
        constants |= dict.fromkeys(pieces)
    name = f"near_gradient {TYPES[dtype]}{' groups' * grouped}{' pairs' * paired}{' by latent' * by_latent}"
    return spec(name, arch, near_gradient_kernel, signature, constants, config, ("n", "stride_threshold"))


AOT = [
    *(
        _places_spec(arch, dtype, groups, by_latent)
        for arch in ARCHS
        for dtype in TYPES
        for groups in (1, 64)
        for by_latent in (False, True)
    ),
    *(
        _gradient_spec(arch, dtype, grouped, paired, by_latent)
        for arch in ARCHS
        for dtype in TYPES
        for grouped in (False, True)
        for paired in (False, True)
        for by_latent in (False, True)
    ),
]
