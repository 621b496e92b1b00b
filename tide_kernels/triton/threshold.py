"""Entries above thresholds: compact (`select_above`) or dense (`keep_above`).

Rows are read once. In the compact form a program of one warp has a row, so that nothing waits for other warps: 32
columns become the bits of a word, the words' counts are added up from lane to lane, and each lane writes its word's
entries, lowest first. Pieces of a row without entries cost little more than their loads. No two entries compete for a
place, so their order is that of the latents, and the same on every run.

Whether a row overflows is known only when it has been read. Another launch, whose programs return at once elsewhere,
writes these rows anew: it searches for the least key kept by bisection and counts the ties.

Entries are compared as float32, to which the bits of 16-bit floats are widened, and written as the bits they were.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import Config, static
from tide_kernels.triton.layout import bits_of
from tide_kernels.triton.select import INFINITY_BITS, INTEGERS, check_rows
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec


@triton.jit
def value_of(bits, INFINITY: tl.constexpr):
    """The float32 of an entry's bits."""
    if INFINITY > 0xFFFF:
        return bits.to(tl.float32, bitcast=True)
    elif INFINITY == 0x7F80:  # bfloat16: the upper half of a float32
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _entries(p_row, o_latent, n):
    """The bits of a row's entries, 0 beyond its end. Not -infinity: Triton 3.6.0 packs two 16-bit numbers into a word
    as if they were positive, so that the upper one becomes -1."""
    return tl.load(p_row + o_latent, mask=o_latent < n, other=0)


@triton.jit
def bounds_of(threshold, group, stride, i_token, BY_LATENT: tl.constexpr):
    """The token's row of thresholds, and the one of all its latents unless BY_LATENT."""
    p_bound = threshold
    if group is not None:
        p_bound += tl.load(group + i_token) * stride
    bound = 0.0
    if not BY_LATENT:
        bound = tl.load(p_bound)
    return p_bound, bound


@triton.jit
def _last_tie(cut, i_token):
    """The last latent of the token that passes if it equals its threshold; -1 if none does."""
    last = -1
    if cut is not None:
        last = tl.load(cut + i_token)
    return last


@triton.jit
def _passes(
    value, p_bound, bound, o_latent, last, n, TIES: tl.constexpr, BY_LATENT: tl.constexpr, PADDED: tl.constexpr
):
    """Whether entries pass: above their thresholds, NaN or, if TIES, equal to them up to the latent ``last``. Those
    beyond the end of the row, of which there are some if PADDED, never do."""
    if BY_LATENT:
        bound = tl.load(p_bound + o_latent, mask=o_latent < n, other=0.0)
    passes = (value <= bound) == 0  # not `>`: NaN has to pass
    if TIES:
        passes = passes | ((value == bound) & (o_latent <= last))
    if PADDED:
        passes = passes & (o_latent < n)
    return passes


@triton.jit
def _add_first(count, word, next_count, next_word):
    """Adds up the counts. Words stay as they are, but one to a lane: a sum over bits leaves copies of them, and what
    follows would be done for each."""
    return count + next_count, next_word


@triton.jit
def _mark_unused(p_values, p_indices, begin, end, ROOM: tl.constexpr):
    for start in range(begin // ROOM * ROOM, end, ROOM):
        o_place = start + tl.arange(0, ROOM)
        mask = (o_place >= begin) & (o_place < end)
        tl.store(p_values + o_place, tl.zeros([ROOM], p_values.dtype.element_ty), mask=mask)
        tl.store(p_indices + o_place, tl.full([ROOM], -1, tl.int32), mask=mask)


@triton.jit
def select_above_kernel(
    pre,  # [n_tokens, n] as integers of the same bits
    threshold,  # [groups, n] float32; [groups, 1] unless BY_LATENT
    group,  # [n_tokens] int64 or None
    cut,  # [n_tokens] int32 or None
    values,  # [n_tokens, capacity], as pre
    indices,  # [n_tokens, capacity] int32
    count,  # [n_tokens] int32
    n,
    stride_pre,
    stride_threshold,
    capacity,
    INFINITY: tl.constexpr,
    BY_LATENT: tl.constexpr,
    PADDED: tl.constexpr,  # whether the last columns that are read lie beyond the row
    WORDS: tl.constexpr,  # of 32 columns, read at once
    ROOM: tl.constexpr,  # unused places marked at once
):
    i_token = tl.program_id(0).to(tl.int64)
    p_row = pre + i_token * stride_pre
    p_bound, bound = bounds_of(threshold, group, stride_threshold, i_token, BY_LATENT)
    last = _last_tie(cut, i_token)
    p_values, p_indices = values + i_token * capacity, indices + i_token * capacity
    o_word, o_bit = tl.arange(0, WORDS) * 32, tl.arange(0, 32)[None, :]
    o_column = tl.arange(0, WORDS)[:, None] * 32 + o_bit
    one = tl.full([WORDS, 32], 1, tl.int32) << o_bit
    place = 0
    following = _entries(p_row, o_column, n)
    for start in range(0, n, WORDS * 32):
        o_latent, bits = start + o_column, following
        following = _entries(p_row, o_latent + WORDS * 32, n)  # under way meanwhile
        value = value_of(bits, INFINITY)
        passes = _passes(value, p_bound, bound, o_latent, last, n, cut is not None, BY_LATENT, PADDED)
        words = tl.sum(tl.where(passes, one, 0), 1)
        reached, words = tl.associative_scan((bits_of(words), words), 0, _add_first)
        found = bits_of(words)
        o_place = place + reached - found
        for _ in range(tl.max(found, 0)):
            # The exponent of a power of two is the number of its bit; the sign of 2^31, as int32, is cut off.
            lowest = (words & -words).to(tl.float32).to(tl.int32, bitcast=True)
            latent = start + o_word + ((lowest >> 23) & 0xFF) - 127
            mask = (words != 0) & (o_place < capacity)
            tl.store(p_values + o_place, tl.load(p_row + latent, mask=mask, other=0), mask=mask)
            tl.store(p_indices + o_place, latent, mask=mask)
            o_place += 1
            words = words & (words - 1)
        place += tl.max(reached, 0)
    tl.store(count + i_token, place)
    _mark_unused(p_values, p_indices, place, capacity, ROOM)


@triton.jit
def _order(value, passes):
    """Integers in the order of the values, all NaNs largest; the least of all where an entry does not pass."""
    bits = value.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    order = tl.where(value == 0, 0, tl.where(value != value, 0x7FFFFFFF, order))
    return tl.where(passes, order, -0x80000000)


@triton.jit
def _ordered(
    p_row,
    p_bound,
    bound,
    o_latent,
    last,
    n,
    TIES: tl.constexpr,
    BY_LATENT: tl.constexpr,
    PADDED: tl.constexpr,
    INFINITY: tl.constexpr,
):
    """The bits of a row's entries and their order among those that pass."""
    bits = _entries(p_row, o_latent, n)
    value = value_of(bits, INFINITY)
    return bits, _order(value, _passes(value, p_bound, bound, o_latent, last, n, TIES, BY_LATENT, PADDED))


@triton.jit
def overflow_kernel(
    pre,  # [n_tokens, n], as the rest for select_above_kernel
    threshold,
    group,
    cut,
    values,
    indices,
    count,
    n,
    stride_pre,
    stride_threshold,
    capacity,
    INFINITY: tl.constexpr,
    BY_LATENT: tl.constexpr,
    PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes the rows anew of which more entries pass than there are places: their largest, of ties the first."""
    i_token = tl.program_id(0).to(tl.int64)
    if tl.load(count + i_token) > capacity:
        TIES: tl.constexpr = cut is not None
        p_row = pre + i_token * stride_pre
        p_bound, bound = bounds_of(threshold, group, stride_threshold, i_token, BY_LATENT)
        last = _last_tie(cut, i_token)
        # At least `capacity` entries reach `low`, fewer, namely `reached`, reach `high`.
        low, high = tl.full([], -0x80000000, tl.int64), tl.full([], 0x80000000, tl.int64)
        reached = 0
        while high - low > 1:
            probe = (low + high) >> 1
            total = tl.zeros([COLUMNS], tl.int32)
            for start in range(0, n, COLUMNS):
                o_latent = start + tl.arange(0, COLUMNS)
                _, order = _ordered(p_row, p_bound, bound, o_latent, last, n, TIES, BY_LATENT, PADDED, INFINITY)
                total += (order >= probe).to(tl.int32)
            reaches = tl.sum(total, 0)
            low = tl.where(reaches >= capacity, probe, low)
            high = tl.where(reaches >= capacity, high, probe)
            reached = tl.where(reaches >= capacity, reached, reaches)
        place, room = i_token * capacity, capacity - reached
        for start in range(0, n, COLUMNS):
            o_latent = start + tl.arange(0, COLUMNS)
            bits, order = _ordered(p_row, p_bound, bound, o_latent, last, n, TIES, BY_LATENT, PADDED, INFINITY)
            tied = (order == low).to(tl.int32)
            kept = ((order > low) | ((tied > 0) & (tl.cumsum(tied, 0) <= room))).to(tl.int32)
            o_place = place + tl.cumsum(kept, 0) - 1
            tl.store(values + o_place, bits, mask=kept > 0)
            tl.store(indices + o_place, o_latent, mask=kept > 0)
            place += tl.sum(kept, 0)
            room -= tl.sum(tied, 0)


@triton.jit
def keep_above_kernel(
    pre,  # [n_tokens, n] as integers of the same bits
    threshold,  # [groups, n] float32; [groups, 1] unless BY_LATENT
    group,  # [n_tokens] int64 or None
    cut,  # [n_tokens] int32 or None
    out,  # [n_tokens, n], as pre, and may be pre
    count,  # [n_tokens] int32
    n,
    stride_pre,
    stride_threshold,
    stride_out,
    INFINITY: tl.constexpr,
    BY_LATENT: tl.constexpr,
    PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_token = tl.program_id(0).to(tl.int64)
    p_row, p_out = pre + i_token * stride_pre, out + i_token * stride_out
    p_bound, bound = bounds_of(threshold, group, stride_threshold, i_token, BY_LATENT)
    last = _last_tie(cut, i_token)
    total = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, n, COLUMNS):
        o_latent = start + tl.arange(0, COLUMNS)
        bits = _entries(p_row, o_latent, n)
        value = value_of(bits, INFINITY)
        passes = _passes(value, p_bound, bound, o_latent, last, n, cut is not None, BY_LATENT, PADDED)
        tl.store(p_out + o_latent, tl.where(passes, bits, 0), mask=o_latent < n)
        total += passes.to(tl.int32)
    tl.store(count + i_token, tl.sum(total, 0))


@triton.jit
def count_equal_kernel(
    pre,  # [n_tokens, n] as integers of the same bits
    value,  # [], as pre
    count,  # [n_tokens] int32
    n,
    stride_pre,
    INFINITY: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_token = tl.program_id(0).to(tl.int64)
    wanted = value_of(tl.load(value), INFINITY)
    total = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, n, COLUMNS):
        o_latent = start + tl.arange(0, COLUMNS)
        bits = tl.load(pre + i_token * stride_pre + o_latent, mask=o_latent < n, other=0)
        total += ((value_of(bits, INFINITY) == wanted) & (o_latent < n)).to(tl.int32)
    tl.store(count + i_token, tl.sum(total, 0))


def select_above(
    pre: Tensor, threshold: Tensor, group: Tensor | None, cut: Tensor | None, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of each row of ``pre [n_tokens, n_latents]`` that pass, ascending by index.

    The contract, also of the next functions, is that of `tide_kernels.thresholds`.
    """
    n_tokens, n_latents = pre.shape
    pre = launch.rows_contiguous(pre)
    bounds, by_latent = table_of(threshold)
    values = launch.empty(n_tokens, capacity, dtype=pre.dtype, device=pre.device)
    indices = launch.empty(n_tokens, capacity, dtype=torch.int32, device=pre.device)
    count = launch.empty(n_tokens, dtype=torch.int32, device=pre.device)
    bits = INTEGERS[pre.dtype]
    arguments = (
        pre.view(bits),
        bounds,
        None if group is None else launch.contiguous(group),
        None if cut is None else launch.contiguous(cut),
        values.view(bits),
        indices,
        count,
        n_latents,
        pre.stride(0),
        bounds.stride(0),
        capacity,
    )
    constants = {"INFINITY": INFINITY_BITS[pre.dtype], "BY_LATENT": by_latent}
    config = launch.config("select_above", pre, n_latents)
    blocks = {name: config[name] for name in ("WORDS", "ROOM")} | {"PADDED": n_latents % (32 * config["WORDS"]) != 0}
    options = launch.options(config)
    launch.launch(select_above_kernel, (n_tokens,), pre.device, *arguments, **constants, **blocks, **options)
    if capacity < n_latents:
        config = launch.config("threshold_rows", pre, n_latents)
        options = {**_columns(config, n_latents), **launch.options(config)}
        launch.launch(overflow_kernel, (n_tokens,), pre.device, *arguments, **constants, **options)
    return values, indices, count


def keep_above(pre: Tensor, threshold: Tensor, group: Tensor | None, cut: Tensor | None, out: Tensor) -> Tensor:
    """Writes the entries of ``pre [n_tokens, n_latents]`` that pass to ``out``, which may be pre, and 0 elsewhere.

    Returns how many of each row pass.

    Raises:
        ValueError: rows of out are not contiguous, or overlap.
    """
    n_tokens, n_latents = pre.shape
    check_rows("out", out)
    pre = launch.rows_contiguous(pre)
    bounds, by_latent = table_of(threshold)
    count = launch.empty(n_tokens, dtype=torch.int32, device=pre.device)
    bits = INTEGERS[pre.dtype]
    config = launch.config("threshold_rows", pre, n_latents)
    launch.launch(
        keep_above_kernel,
        (n_tokens,),
        pre.device,
        pre.view(bits),
        bounds,
        None if group is None else launch.contiguous(group),
        None if cut is None else launch.contiguous(cut),
        out.view(bits),
        count,
        n_latents,
        pre.stride(0),
        bounds.stride(0),
        out.stride(0),
        INFINITY=INFINITY_BITS[pre.dtype],
        BY_LATENT=by_latent,
        **_columns(config, n_latents),
        **launch.options(config),
    )
    return count


def count_equal(pre: Tensor, value: Tensor) -> Tensor:
    """How many entries of each row are ``value``, which has the dtype of pre and no dimension."""
    n_tokens, n_latents = pre.shape
    pre = launch.rows_contiguous(pre)
    count = launch.empty(n_tokens, dtype=torch.int32, device=pre.device)
    bits = INTEGERS[pre.dtype]
    config = launch.config("threshold_rows", pre, n_latents)
    launch.launch(
        count_equal_kernel,
        (n_tokens,),
        pre.device,
        pre.view(bits),
        launch.contiguous(value).view(bits),
        count,
        n_latents,
        pre.stride(0),
        INFINITY=INFINITY_BITS[pre.dtype],
        COLUMNS=config["COLUMNS"],
        **launch.options(config),
    )
    return count


def _columns(config: Config, n_latents: int) -> dict[str, int | bool]:
    return {"COLUMNS": config["COLUMNS"], "PADDED": n_latents % config["COLUMNS"] != 0}


def table_of(threshold: Tensor) -> tuple[Tensor, bool]:
    """Thresholds ``[groups, n_latents]`` in rows that are contiguous, and whether a row has more than one number: if
    not, ``[groups, 1]``."""
    by_latent = threshold.stride(1) != 0
    return launch.rows_contiguous((threshold if by_latent else threshold[:, :1]).float()), by_latent


_SIGNATURE = {"threshold": "*fp32", "count": "*i32", "n": "i32", "stride_pre": "i32", "stride_threshold": "i32"}
_CODE = {"indices": "*i32", "capacity": "i32"}


def _spec(arch: str, name: str, dtype: torch.dtype, by_latent: bool, optional: bool) -> Spec:
    """``optional``: with groups and a cut, and rows that do not end with a block."""
    kernel = {"select_above": select_above_kernel, "overflow": overflow_kernel, "keep_above": keep_above_kernel}[name]
    integer = "*i16" if dtype.itemsize == 2 else "*i32"
    config = static("select_above" if name == "select_above" else "threshold_rows", arch, dtype, 18432)
    signature = {"pre": integer, **_SIGNATURE}
    signature |= {"out": integer, "stride_out": "i32"} if name == "keep_above" else {"values": integer, **_CODE}
    constants: dict[str, object] = {"INFINITY": INFINITY_BITS[dtype], "BY_LATENT": by_latent, "PADDED": optional}
    if optional:
        signature |= {"group": "*i64", "cut": "*i32"}
    else:
        constants |= {"group": None, "cut": None}
    aligned = tuple(
        size for size in ("n", "stride_pre", "stride_threshold", "capacity", "stride_out") if size in signature
    )
    form = f"{name} {TYPES[dtype]}{' by latent' * by_latent}{' groups cut' * optional}"
    return spec(form, arch, kernel, signature, constants, config, aligned)


def _count_spec(arch: str, dtype: torch.dtype) -> Spec:
    integer = "*i16" if dtype.itemsize == 2 else "*i32"
    config = static("threshold_rows", arch, dtype, 18432)
    signature = {"pre": integer, "value": integer, "count": "*i32", "n": "i32", "stride_pre": "i32"}
    constants = {"INFINITY": INFINITY_BITS[dtype]}
    name = f"count_equal {TYPES[dtype]}"
    return spec(name, arch, count_equal_kernel, signature, constants, config, ("n", "stride_pre"))


AOT = [
    *(
        _spec(arch, name, dtype, by_latent, optional)
        for arch in ARCHS
        for name in ("select_above", "overflow", "keep_above")
        for dtype in TYPES
        for by_latent in (False, True)
        for optional in (False, True)
    ),
    *(_count_spec(arch, dtype) for arch in ARCHS for dtype in TYPES),
]
