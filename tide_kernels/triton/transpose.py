"""Sums over the tokens of each latent: `scatter`, and all gradients of the sparse regime in one walk.

Both walk over the layout of `tide_kernels.triton.layout`, in which a latent's places are cut into pieces of a fixed
length. A latent of one piece adds its sum directly to the result; the pieces of the others store theirs in a table,
and a second launch adds these up in the order of the pieces. Nothing depends on the order in which programs run.

Only the device knows how many pieces there are. Launches are sized by bounds: every latent may have one piece that
is not full, and a latent of several pieces has at most two for each full one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import Config, static
from tide_kernels.triton.layout import PIECE, Layout, transpose, transpose_selected
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec, without

__all__ = ["backward_latents", "scatter", "transpose", "transpose_selected"]


def partial_sums(layout: Layout, width: int) -> Tensor:
    """Partial sums of the latents of several pieces."""
    rows = 2 * (len(layout.places) // PIECE)
    return launch.empty(rows, width, dtype=torch.float32, device=layout.places.device)


@triton.jit
def piece_of(i_piece, latent, pieces, offsets, slots, PIECE: tl.constexpr):
    """The piece's latent, the range of its places and its row of the table, -1 if it has none."""
    i_latent = tl.load(latent + i_piece).to(tl.int64)
    number = i_piece - tl.load(pieces + i_latent)
    begin = tl.load(offsets + i_latent) + number * PIECE
    end = tl.minimum(begin + PIECE, tl.load(offsets + i_latent + 1))
    slot = tl.load(slots + i_latent).to(tl.int64)
    return i_latent, begin, end, tl.where(tl.load(slots + i_latent + 1) > slot, slot + number, -1)


@triton.jit(do_not_specialize=["n"])
def scatter_kernel(
    values,  # [n_tokens, k]
    rows,  # [n_tokens, d]
    tokens,
    places,
    offsets,
    pieces,
    slots,
    latent,
    out,  # [n, d] float32
    table,  # [slots, d] float32
    d,
    stride_rows,
    n,
    PIECE: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_piece = tl.program_id(0)
    if tl.load(latent + i_piece) < n:
        i_latent, begin, end, slot = piece_of(i_piece, latent, pieces, offsets, slots, PIECE)
        o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        m_column = o_column < d
        acc = tl.zeros([PLACES, COLUMNS], tl.float32)
        for start in range(begin, end, PLACES):
            o_entry = start + tl.arange(0, PLACES)
            m_entry = o_entry < end
            weights = tl.load(values + tl.load(places + o_entry, mask=m_entry, other=0), mask=m_entry, other=0)
            i_token = tl.load(tokens + o_entry, mask=m_entry, other=0).to(tl.int64)
            p_rows = rows + i_token[:, None] * stride_rows + o_column[None, :]
            mask = m_entry[:, None] & m_column[None, :]
            acc += weights.to(tl.float32)[:, None] * tl.load(p_rows, mask=mask, other=0).to(tl.float32)
        total = tl.sum(acc, 0)
        if slot < 0:
            p_out = out + i_latent * d + o_column
            tl.store(p_out, tl.load(p_out, mask=m_column) + total, mask=m_column)
        else:
            tl.store(table + slot * d + o_column, total, mask=m_column)


@triton.jit(do_not_specialize=["n"])
def fold_kernel(
    table,  # [slots, width] float32
    slots,
    out,  # [n, width] float32
    width,
    n,
    LATENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Adds the partial sums of each latent of several pieces, in their order. Few latents have them, and most programs
    see at once that none of theirs does."""
    first = tl.program_id(0) * LATENTS
    last = tl.minimum(first + LATENTS, n)
    if tl.load(slots + last) > tl.load(slots + first):
        o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        m_column = o_column < width
        for i_latent in range(first, last):
            begin, end = tl.load(slots + i_latent).to(tl.int64), tl.load(slots + i_latent + 1).to(tl.int64)
            if end > begin:
                p_out = out + tl.cast(i_latent, tl.int64) * width + o_column
                total = tl.load(p_out, mask=m_column)
                for slot in range(begin, end):
                    total += tl.load(table + slot * width + o_column, mask=m_column)
                tl.store(p_out, total, mask=m_column)


@triton.jit
def _rows(p_rows, mask, d, TILES: tl.constexpr, COLUMNS: tl.constexpr):
    """Whole rows as a tuple of tiles of columns."""
    tiles = ()
    for i in tl.static_range(TILES):
        o_column = i * COLUMNS + tl.arange(0, COLUMNS)
        m_tile = mask[:, None] & (o_column < d)[None, :]
        tiles += (tl.load(p_rows[:, None] + o_column[None, :], mask=m_tile, other=0),)  # type: ignore[assignment]
    return tiles


@triton.jit
def _zeros(TILES: tl.constexpr, COLUMNS: tl.constexpr):
    tiles = ()
    for _i in tl.static_range(TILES):
        tiles += (tl.zeros([COLUMNS], tl.float32),)  # type: ignore[assignment]
    return tiles


@triton.jit
def _dots(rows, p_row, d, TILES: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr):
    """The products of several rows with one, which is read from the cache each time: registers are full of sums."""
    products = tl.zeros([PLACES, COLUMNS], tl.float32)
    for i in tl.static_range(TILES):
        o_column = i * COLUMNS + tl.arange(0, COLUMNS)
        row = tl.load(p_row + o_column, mask=o_column < d, other=0)
        products += rows[i].to(tl.float32) * row.to(tl.float32)[None, :]
    return tl.sum(products, 1)


@triton.jit
def _add_weighted(sums, weights, rows, TILES: tl.constexpr):
    """``sums + weights^T rows``, tile by tile. A thread holds a column of all rows, so that nothing is exchanged."""
    tiles = ()
    for i in tl.static_range(TILES):
        tiles += (sums[i] + tl.sum(weights[:, None] * rows[i].to(tl.float32), 0),)  # type: ignore[assignment]
    return tiles


@triton.jit
def _add_row(sums, out, table, i_latent, slot, d, TILES: tl.constexpr, COLUMNS: tl.constexpr):
    """Adds a piece's sums to its latent's row, or stores them in the table."""
    for i in tl.static_range(TILES):
        o_column = i * COLUMNS + tl.arange(0, COLUMNS)
        m_column = o_column < d
        if slot < 0:
            p_out = out + i_latent * d + o_column
            tl.store(p_out, tl.load(p_out, mask=m_column) + sums[i], mask=m_column)
        else:
            tl.store(table + slot * d + o_column, sums[i], mask=m_column)


@triton.jit(do_not_specialize=["n"])
def backward_latents_kernel(
    values,  # [n_tokens, k]
    extra,  # [n_tokens, k] float32 or None
    grad,  # [n_tokens, d], in the dtype of W_dec
    x_mod,  # [n_tokens, d] or None
    W_dec,  # [n, d]
    tokens,
    places,
    offsets,
    pieces,
    slots,
    latent,
    grad_values,  # [n_tokens, k] float32
    grad_W_dec,  # [n, d] float32 or None, as the next
    grad_W_enc,
    grad_b_enc,  # [n] float32 or None
    table_dec,  # [slots, d] float32, as the next
    table_enc,
    table_b,  # [slots] float32
    d,
    stride_grad,
    stride_x_mod,
    stride_W_dec,
    n,
    PIECE: tl.constexpr,
    TILES: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    i_piece = tl.program_id(0)
    if tl.load(latent + i_piece) < n:
        i_latent, begin, end, slot = piece_of(i_piece, latent, pieces, offsets, slots, PIECE)
        sums_dec, sums_enc = _zeros(TILES, COLUMNS), _zeros(TILES, COLUMNS)
        sum_b = tl.zeros([PLACES], tl.float32)
        if AHEAD:
            o_entry = begin + tl.arange(0, PLACES)
            i_token = tl.load(tokens + o_entry, mask=o_entry < end, other=0).to(tl.int64)
            next_grads = _rows(grad + i_token * stride_grad, o_entry < end, d, TILES, COLUMNS)
            if grad_W_enc is not None:
                next_inputs = _rows(x_mod + i_token * stride_x_mod, o_entry < end, d, TILES, COLUMNS)
            i_token = tl.load(tokens + o_entry + PLACES, mask=o_entry + PLACES < end, other=0).to(tl.int64)
        for start in range(begin, end, PLACES):
            o_entry = start + tl.arange(0, PLACES)
            m_entry = o_entry < end
            place = tl.load(places + o_entry, mask=m_entry, other=0)
            if AHEAD:
                grads = next_grads
                following = o_entry + PLACES
                next_grads = _rows(grad + i_token * stride_grad, following < end, d, TILES, COLUMNS)
                if grad_W_enc is not None:
                    inputs = next_inputs
                    next_inputs = _rows(x_mod + i_token * stride_x_mod, following < end, d, TILES, COLUMNS)
                i_token = tl.load(tokens + following + PLACES, mask=following + PLACES < end, other=0).to(tl.int64)
            else:
                i_token = tl.load(tokens + o_entry, mask=m_entry, other=0).to(tl.int64)
                grads = _rows(grad + i_token * stride_grad, m_entry, d, TILES, COLUMNS)
                if grad_W_enc is not None:  # loaded here, so as not to wait for the slopes first
                    inputs = _rows(x_mod + i_token * stride_x_mod, m_entry, d, TILES, COLUMNS)
            slopes = _dots(grads, W_dec + i_latent * stride_W_dec, d, TILES, PLACES, COLUMNS)
            if extra is not None:
                slopes += tl.load(extra + place, mask=m_entry, other=0)
            # Entries past the end have gradients of 0 but a row of weights that may be infinite or NaN.
            slopes = tl.where(m_entry, slopes, 0)
            tl.store(grad_values + place, slopes, mask=m_entry)
            code = tl.load(values + place, mask=m_entry, other=0)
            slopes = tl.where(code != 0, slopes, 0)
            sum_b += slopes
            if grad_W_dec is not None:
                weights = code.to(W_dec.dtype.element_ty).to(tl.float32)
                sums_dec = _add_weighted(sums_dec, weights, grads, TILES)
            if grad_W_enc is not None:
                rounded = slopes.to(W_dec.dtype.element_ty).to(tl.float32)
                sums_enc = _add_weighted(sums_enc, rounded, inputs, TILES)
        if grad_W_dec is not None:
            _add_row(sums_dec, grad_W_dec, table_dec, i_latent, slot, d, TILES, COLUMNS)
        if grad_W_enc is not None:
            _add_row(sums_enc, grad_W_enc, table_enc, i_latent, slot, d, TILES, COLUMNS)
        if grad_b_enc is not None:
            if slot < 0:
                tl.store(grad_b_enc + i_latent, tl.load(grad_b_enc + i_latent) + tl.sum(sum_b, 0))
            else:
                tl.store(table_b + slot, tl.sum(sum_b, 0))


def scatter(values: Tensor, layout: Layout, rows: Tensor, out: Tensor) -> None:
    """``out_l += sum over the places of latent l of values * rows of its token``; out is float32 ``[n, d]``."""
    n_latents, d_model = out.shape
    rows = launch.rows_contiguous(rows)
    config = launch.config("scatter", rows, d_model)
    columns = launch.cover(d_model, config["COLUMNS"])
    table = partial_sums(layout, d_model)
    launch.launch(
        scatter_kernel,
        (len(layout.latent) if len(layout.places) else 0, launch.cdiv(d_model, columns)),
        out.device,
        launch.contiguous(values),
        rows,
        *layout,
        out,
        table,
        d_model,
        rows.stride(0),
        n_latents,
        PIECE=PIECE,
        PLACES=config["PLACES"],
        COLUMNS=columns,
        **launch.options(config),
    )
    fold(table, layout.slots, out)


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
) -> Tensor:
    """All that the sparse regime's backward pass needs of a code, in one walk over the latents.

    For each place (i, l) with value v, ``dv = <grad_i, W_dec_l> + extra``; and ``grad_W_dec_l += v grad_i``,
    ``grad_W_enc_l += dv x_mod_i``, ``grad_b_enc_l += dv``, these two only where v is not 0. Operands of products are
    rounded to the dtype of W_dec, sums are in float32. Returns dv, float32 ``[n_tokens, k]``, 0 at unused places.
    """
    n_latents, d_model = W_dec.shape
    device, dtype = W_dec.device, W_dec.dtype
    grad_values = torch.zeros(indices.shape, dtype=torch.float32, device=device)
    grad, x_mod, W_dec = (launch.rows_contiguous(t.to(dtype)) for t in (grad, x_mod, W_dec))
    table_dec = None if grad_W_dec is None else partial_sums(layout, d_model)
    table_enc = None if grad_W_enc is None else partial_sums(layout, d_model)
    table_b = None if grad_b_enc is None else partial_sums(layout, 1)
    config = launch.config("backward_latents", W_dec, d_model)
    launch.launch(
        backward_latents_kernel,
        (len(layout.latent) if len(layout.places) else 0,),
        device,
        launch.contiguous(values),
        None if extra is None else launch.contiguous(extra),
        grad,
        x_mod,
        W_dec,
        *layout,
        grad_values,
        grad_W_dec,
        grad_W_enc,
        grad_b_enc,
        table_dec,
        table_enc,
        table_b,
        d_model,
        grad.stride(0),
        x_mod.stride(0),
        W_dec.stride(0),
        n_latents,
        PIECE=PIECE,
        **_row_tiles(config, d_model),
        **launch.options(config),
    )
    for table, out in ((table_dec, grad_W_dec), (table_enc, grad_W_enc), (table_b, grad_b_enc)):
        if table is not None and out is not None:
            fold(table, layout.slots, out.view(n_latents, -1))
    return grad_values


def fold(table: Tensor, slots: Tensor, out: Tensor, together: int | None = None) -> None:
    """``out_l += the sum of the rows slots[l]:slots[l + 1] of the table``, in their order. A program takes ``together``
    rows of out one after another; by default as many as suits a table of few of them."""
    n_latents, width = out.shape
    config = launch.config("fold", out, width)
    together = together or config["LATENTS"]
    columns = launch.cover(width, config["COLUMNS"])
    launch.launch(
        fold_kernel,
        (launch.cdiv(n_latents, together) if len(table) else 0, launch.cdiv(width, columns)),
        out.device,
        table,
        slots,
        out,
        width,
        n_latents,
        LATENTS=together,
        COLUMNS=columns,
        **launch.options(config),
    )


def _row_tiles(config: Config, d_model: int) -> dict[str, int]:
    columns = min(config["COLUMNS"], triton.next_power_of_2(d_model))
    tiles = {"PLACES": config["PLACES"], "COLUMNS": columns, "TILES": launch.cdiv(d_model, columns)}
    return tiles | {"AHEAD": config["ahead"]}


LAYOUT = dict.fromkeys(Layout._fields, "*i32")


def _specs(arch: str, dtype: torch.dtype, d_model: int) -> list[Spec]:
    kind, name = TYPES[dtype], f"{TYPES[dtype]} d={d_model}"
    config = static("scatter", arch, dtype, d_model)
    columns = {"COLUMNS": launch.cover(d_model, config["COLUMNS"]), "PIECE": PIECE}
    signature = {"values": f"*{kind}", "rows": f"*{kind}", **LAYOUT, "out": "*fp32", "table": "*fp32"}
    signature |= {"d": "i32", "stride_rows": "i32", "n": "i32"}
    records = [spec(f"scatter {name}", arch, scatter_kernel, signature, columns, config, ("d", "stride_rows"))]

    config = static("fold", arch, torch.float32, d_model)
    columns = {"COLUMNS": launch.cover(d_model, config["COLUMNS"])}
    signature = {"table": "*fp32", "slots": "*i32", "out": "*fp32", "width": "i32", "n": "i32"}
    records.append(spec(f"fold d={d_model}", arch, fold_kernel, signature, columns, config, ("width",)))

    config = static("backward_latents", arch, dtype, d_model)
    constants = {**_row_tiles(config, d_model), "PIECE": PIECE}
    names = ("values", "extra", "grad", "x_mod", "W_dec", *LAYOUT, "grad_values", "grad_W_dec", "grad_W_enc")
    names += ("grad_b_enc", "table_dec", "table_enc", "table_b")
    signature = {name: LAYOUT.get(name, "*fp32") for name in names}
    signature |= {name: f"*{kind}" for name in ("values", "grad", "x_mod", "W_dec")}
    strides = ("d", "stride_grad", "stride_x_mod", "stride_W_dec")
    signature |= {name: "i32" for name in (*strides, "n")}
    kernel = backward_latents_kernel
    records.append(spec(f"backward_latents {name}", arch, kernel, signature, constants, config, strides))
    return records


AOT = [
    record
    for arch in ARCHS
    for dtype, d_model in ((torch.bfloat16, 1152), (torch.float16, 1152), (torch.float32, 1152), (torch.bfloat16, 4608))
    for record in _specs(arch, dtype, d_model)
]
AOT += [
    without(record, *names)
    for record in list(AOT)
    if record.name == "backward_latents bf16 d=1152"
    for names in (
        ("extra",),
        ("extra", "grad_W_dec", "grad_W_enc", "table_dec", "table_enc"),
        ("extra", "grad_W_dec", "grad_W_enc", "grad_b_enc", "table_dec", "table_enc", "table_b"),
    )
]
