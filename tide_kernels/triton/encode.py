"""The encoder: the pre-activations alone (`pre_activations`), or the code in a single launch (`encode`).

`encode` modulates, multiplies and selects in one persistent kernel. Its pre-activations live in a small ring, never in
``[n_tokens, n_latents]``. Tokens are taken in bands of a few blocks, and the work of a band in items: pieces of its
modulation, tiles of its product, pieces of its selection. Programs take the items in the order of `item_of` by an
atomic ticket. An item waits, by counters for each band, only for items that come before it, so that any number of
programs, one after another or together, finishes without a deadlock. The order leaves a tile's time between an item and
those that wait for it, and spreads the selection of a band over the product of the next: while one program of a
multiprocessor selects, the other one keeps the tensor cores busy.

The product sums in the order of `product`, and the selection is that of `select`, so the result does not depend on
which program takes which item.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.reference import LAYER_NORM_EPS
from tide_kernels.triton import launch
from tide_kernels.triton.configs import Config, static
from tide_kernels.triton.modulate import columns, modulate_rows
from tide_kernels.triton.product import accumulate, product
from tide_kernels.triton.select import INTEGERS, select_row, selection_constants
from tide_kernels.triton.specs import ARCHS, PRECISIONS, TYPES, Spec, spec, without

# Kinds of items.
MODULATE = tl.constexpr(0)
MULTIPLY = tl.constexpr(1)
SELECT = tl.constexpr(2)
# Bands whose pre-activations, and whose modulated tokens, exist at a time.
_BANDS = tl.constexpr(2)
_BANDS_MODULATED = tl.constexpr(3)


def pre_activations(x_mod: Tensor, W_enc: Tensor, b_enc: Tensor | None) -> Tensor:
    """``x_mod W_enc^T + b_enc``, ``[C, n]`` in the dtype of x_mod, by cuBLAS or by `product`.

    The ReLU is left to the selection, for which it is free: in an epilogue it would turn NaN into 0.
    """
    if x_mod.is_cuda and launch.config("pre_activations", x_mod, W_enc.shape[1])["cublas"]:
        return F.linear(x_mod, W_enc, b_enc)
    pre = launch.empty(len(x_mod), len(W_enc), dtype=x_mod.dtype, device=x_mod.device)
    product(x_mod, W_enc.T, pre, bias=b_enc)
    return pre


@triton.jit
def item_of(ticket, bands, modulations, tiles, selections, head):
    """The kind of a ticket's item, its band, and its index among the band's items of that kind.

    First the modulation of band 0; then for each band the modulation of the next one, and its tiles, among which the
    selection of the band before is spread evenly after the first ``head``; last the selection of the last band.
    Bands before the first and after the last one have items too, which have no tokens.
    """
    per_band = modulations + tiles + selections
    later = ticket - modulations
    band = later // per_band
    place = later - band * per_band - modulations
    spread = tiles + selections - head
    selected = tl.maximum(place - head, 0) * selections // spread
    selects = (place >= head) & ((place - head + 1) * selections // spread > selected)
    kind = tl.where(selects, SELECT, MULTIPLY)
    index = tl.where(selects, selected, place - selected)
    if later < 0:
        kind, band, index = MODULATE, 0, ticket
    elif band >= bands:
        kind, index = SELECT, place + modulations
    elif place < 0:
        kind, band, index = MODULATE, band + 1, place + modulations
    return kind, tl.where(kind == SELECT, band - 1, band), index


@triton.jit
def _wait(counter, wanted):
    """Returns when the items of a counter are done: what they wrote can be read, and what they read be written."""
    while tl.atomic_add(counter, 0, sem="acquire") < wanted:
        pass


@triton.jit
def _done(counter):
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit(
    do_not_specialize=["n_tokens", "k", "bands", "height", "modulations", "tiles", "selections", "head", "rows"]
)
def encode_kernel(
    x,  # [n_tokens, d]
    scale,  # [groups, d] or None, as the next
    shift,
    group,  # [n_tokens] int64 or None
    W_enc,  # [n, d]
    b_enc,  # [n] or None
    x_mod,  # [3 * height * BLOCK_M, d]: modulated tokens of three bands; None if tokens are taken as they are
    pre,  # [2 * height * BLOCK_M, n]: the bits of the pre-activations of two bands
    values,  # [n_tokens, k] as integers of the same bits
    indices,  # [n_tokens, k] int32
    ticket,  # [1] int32, zero at first, as the next
    done,  # [3, bands] int32: finished items of each kind
    n_tokens,
    n,
    d,
    k,
    bands,
    height,  # of a band, in blocks of BLOCK_M tokens
    modulations,  # items of a band, as the next two
    tiles,
    selections,
    head,  # tiles of a band before the selection of the band before begins
    rows,  # of an item of the selection
    stride_x,
    stride_scale,
    stride_shift,
    stride_W_enc,
    eps,
    LAYER_NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    INFINITY: tl.constexpr,
    ONE: tl.constexpr,
    STEP: tl.constexpr,
    CHUNKS: tl.constexpr,
    RESIDENT: tl.constexpr,
    FULL: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,  # of an item of the modulation, as the next two
    COLUMNS: tl.constexpr,
    PIECES: tl.constexpr,
):
    modulated, multiplied, selected = done, done + bands, done + 2 * bands
    tokens = height * BLOCK_M  # of a band
    items = modulations + bands * (modulations + tiles + selections) + selections
    guess = ONE
    i_item = tl.atomic_add(ticket, 1, sem="relaxed")
    while i_item < items:
        kind, band, index = item_of(i_item, bands, modulations, tiles, selections, head)
        first_token = band * tokens
        if kind == MODULATE:
            if x_mod is not None:
                if band < bands:
                    if band >= _BANDS_MODULATED:
                        _wait(multiplied + band - _BANDS_MODULATED, tiles)
                    o_row = index * ROWS + tl.arange(0, ROWS)
                    o_token = tl.cast(first_token, tl.int64) + o_row
                    m_token = (o_row < tokens) & (o_token < n_tokens)
                    o_slot = (band % _BANDS_MODULATED) * tokens + o_row
                    modulate_rows(
                        x,
                        scale,
                        shift,
                        group,
                        x_mod + o_slot.to(tl.int64) * d,
                        o_token,
                        m_token,
                        d,
                        stride_x,
                        stride_scale,
                        stride_shift,
                        eps,
                        LAYER_NORM,
                        ROWS,
                        COLUMNS,
                        PIECES,
                    )
                    _done(modulated + band)
        elif kind == MULTIPLY:
            i_m, i_n = index % height, index // height
            if first_token + i_m * BLOCK_M < n_tokens:
                if x_mod is not None:
                    _wait(modulated + band, modulations)
                    a, i_a, limit, stride_a = (
                        x_mod,
                        (band % _BANDS_MODULATED) * height + i_m,
                        tokens * _BANDS_MODULATED,
                        d,
                    )
                else:
                    a, i_a, limit, stride_a = x, band * height + i_m, n_tokens, stride_x
                acc = accumulate(
                    tl.zeros([BLOCK_M, BLOCK_N], tl.float32),
                    a,
                    W_enc,
                    i_a,
                    i_n,
                    limit,
                    n,
                    d,
                    stride_a,
                    1,
                    1,
                    stride_W_enc,
                    PRECISION,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                )
                o_row, o_latent = tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
                if b_enc is not None:
                    acc += tl.load(b_enc + o_latent, mask=o_latent < n, other=0).to(tl.float32)[None, :]
                out = acc.to(W_enc.dtype.element_ty).to(pre.dtype.element_ty, bitcast=True)
                if band >= _BANDS:
                    _wait(selected + band - _BANDS, selections)
                first_slot = (band % _BANDS) * tokens + i_m * BLOCK_M
                p_pre = pre + tl.cast(first_slot, tl.int64) * n + (o_row[:, None] * n + o_latent[None, :])
                tl.store(p_pre, out, mask=(o_latent < n)[None, :])
            _done(multiplied + band)
        elif band >= 0:
            _wait(multiplied + band, tiles)
            first, last = index * rows, tl.minimum(tl.minimum((index + 1) * rows, tokens), n_tokens - first_token)
            for i_row in range(first, last):
                p_row = pre + tl.cast((band % _BANDS) * tokens + i_row, tl.int64) * n
                o_place = tl.cast(first_token + i_row, tl.int64) * k
                guess = select_row(
                    values + o_place,
                    indices + o_place,
                    p_row,
                    n,
                    k,
                    guess,
                    INFINITY,
                    STEP,
                    CHUNKS,
                    RESIDENT,
                    FULL,
                    WORDS,
                )
            _done(selected + band)
        i_item = tl.atomic_add(ticket, 1, sem="relaxed")


def encode(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    W_enc: Tensor,
    b_enc: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """``select(x_mod W_enc^T + b_enc)`` with x_mod as `modulate` gives it, in one launch.

    Pre-activations are rounded to the dtype of W_enc before the selection. Returns values ``[n_tokens, k]`` in
    that dtype and indices in int32, as `select` does.
    """
    (n_tokens, d_model), n_latents = x.shape, len(W_enc)
    dtype, device = W_enc.dtype, W_enc.device
    alters = scale is not None or shift is not None or layer_norm or x.dtype != dtype
    x, W_enc = launch.rows_contiguous(x), launch.rows_contiguous(W_enc)
    scale, shift = (None if table is None else launch.rows_contiguous(table) for table in (scale, shift))
    values = launch.empty(n_tokens, k, dtype=dtype, device=device)
    indices = launch.empty(n_tokens, k, dtype=torch.int32, device=device)
    if n_tokens == 0:
        return values, indices
    config = launch.config("encode", W_enc, d_model)
    programs = launch.processors(device) * max(1, config["programs"])
    plan = schedule(config, n_tokens, n_latents, alters, programs)
    bands, band = plan["bands"], plan["height"] * config["BLOCK_M"]
    counters = torch.zeros(1 + 3 * bands, dtype=torch.int32, device=device)
    pre = launch.empty(min(bands, _BANDS.value) * band, n_latents, dtype=dtype, device=device)
    rows = min(bands, _BANDS_MODULATED.value) * band
    x_mod = launch.empty(rows, d_model, dtype=dtype, device=device) if alters else None
    launch.launch(
        encode_kernel,
        (programs,),
        device,
        x,
        scale,
        shift,
        None if group is None else launch.contiguous(group),
        W_enc,
        None if b_enc is None else launch.contiguous(b_enc),
        x_mod,
        pre.view(INTEGERS[dtype]),
        values.view(INTEGERS[dtype]),
        indices,
        counters[:1],
        counters[1:],
        n_tokens,
        n_latents,
        d_model,
        k,
        *plan.values(),
        x.stride(0),
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        W_enc.stride(0),
        LAYER_NORM_EPS,
        LAYER_NORM=layer_norm,
        PRECISION=launch.dot_precision(dtype),
        **_constexprs(dtype, n_latents, d_model, config),
        **launch.options(config),
    )
    return values, indices


def schedule(config: Config, n_tokens: int, n_latents: int, alters: bool, programs: int) -> dict[str, int]:
    """The arguments ``bands`` to ``rows`` of `encode_kernel`."""
    blocks, columns = triton.cdiv(n_tokens, config["BLOCK_M"]), triton.cdiv(n_latents, config["BLOCK_N"])
    # A band has at least two tiles for each program, so that none waits for one which has just begun.
    height = min(blocks, max(1, config["height"], triton.cdiv(2 * programs, columns)))
    tokens, tiles = height * config["BLOCK_M"], height * columns
    rows = max(1, min(config["rows"], n_tokens // programs))
    return {
        "bands": triton.cdiv(blocks, height),
        "height": height,
        "modulations": triton.cdiv(tokens, config["ROWS"]) if alters else 0,
        "tiles": tiles,
        "selections": triton.cdiv(tokens, rows),
        "head": min(tiles, programs),
        "rows": rows,
    }


def single_launch(device: torch.device, dtype: torch.dtype, n_tokens: int, n_latents: int, k: int) -> bool:
    """Whether `encode` is faster than separate product and selection. An H200 found it three to four times slower, so
    it is never chosen automatically (benchmarks/NOTES.md)."""
    return False


def _constexprs(dtype: torch.dtype, n_latents: int, d_model: int, config: Config) -> dict[str, int | bool]:
    constants = selection_constants(dtype, n_latents, config, compact=True)
    constants |= {name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "ROWS")}
    constants["COLUMNS"], constants["PIECES"] = columns(d_model, config).values()
    return {name: value for name, value in constants.items() if name in encode_kernel.arg_names}


def _spec(arch: str, dtype: torch.dtype, precision: str, altered: bool) -> Spec:
    kind = TYPES[dtype]
    bits = "*i32" if dtype == torch.float32 else "*i16"
    signature = {name: f"*{kind}" for name in ("x", "W_enc", "b_enc")}
    signature |= {"pre": bits, "values": bits, "indices": "*i32", "ticket": "*i32", "done": "*i32", "eps": "fp32"}
    aligned = ("n", "d", "stride_x", "stride_scale", "stride_shift", "stride_W_enc")
    counts = ("bands", "height", "modulations", "tiles", "selections", "head", "rows")
    signature |= {name: "i32" for name in (*aligned, *counts, "n_tokens", "k")}
    config = static("encode", arch, dtype, 1152)
    constants: dict[str, object] = {"PRECISION": precision, "LAYER_NORM": altered}
    constants |= _constexprs(dtype, 18432, 1152, config)
    if altered:
        signature |= {"scale": f"*{kind}", "shift": f"*{kind}", "group": "*i64", "x_mod": f"*{kind}"}
    else:
        constants |= {"scale": None, "shift": None, "group": None, "x_mod": None}
    name = f"encode {kind} {precision}{' modulated' * altered}"
    return spec(name, arch, encode_kernel, signature, constants, config, aligned)


AOT = [
    _spec(arch, dtype, precision, altered)
    for arch in ARCHS
    for dtype, precision in PRECISIONS
    for altered in (False, True)
]
AOT += [
    without(_spec(arch, torch.bfloat16, "ieee", altered), *names, **constants)
    for arch in ARCHS
    for altered, names, constants in (
        (False, ("b_enc",), {}),
        (True, ("b_enc", "scale", "shift", "group"), {}),
        (True, ("scale",), {"LAYER_NORM": False}),
        (True, ("shift", "group"), {"LAYER_NORM": False}),
    )
]
