"""Exact row-wise selection, compact or in place: the k largest strictly positive entries, ties to the lowest index.

The bits of non-negative floats are ordered as integers, so a row becomes a row of integer keys: 15 bits of
a 16-bit float, 31 of a float32; 0 where the entry is not positive, the largest of all for a NaN of either
sign. The k-th largest key t is the largest number that at least k keys reach, found by bisection: each step
counts the keys that reach a probe. The search starts at the threshold of the row before and brackets t in a few
steps of growing width. Kept are all keys above t and, of those equal to t, as many of the first as there is room for.

A row is read in chunks; as many as fit into registers are loaded only once, and only the last one is padded.
16-bit keys are counted two to a 32-bit word, the first half of a chunk in the low halves and the second in
the high ones: ``(word | 0x80008000) - t * 0x10001`` leaves bit 15 of a half set where its key reaches t, and
no borrow crosses between the halves.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels import native
from tide_kernels.triton import launch
from tide_kernels.triton.configs import Config, static
from tide_kernels.triton.dense import code_sums
from tide_kernels.triton.keys import INFINITY_BITS, INTEGERS
from tide_kernels.triton.prune import group_length, select_pruned
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec, without

# As bits: 1.0, where the first search starts, and the search's first step, about 3 % of a value.
_ONE = {torch.float16: 0x3C00, torch.bfloat16: 0x3F80, torch.float32: 0x3F800000}
_STEP = {torch.float16: 32, torch.bfloat16: 4, torch.float32: 1 << 18}
_ROWS_BUSY = 1024  # programs that keep a large GPU busy


@triton.jit
def _keys(p_row, o_latent, n, MASKED: tl.constexpr, INFINITY: tl.constexpr):
    """The keys at ``o_latent``: 0 where not positive or, if MASKED, outside of the row."""
    SIZE: tl.constexpr = 0x7FFF if INFINITY < 0x10000 else 0x7FFFFFFF
    if MASKED:
        bits = tl.load(p_row + o_latent, mask=o_latent < n, other=0).to(tl.int32)
    else:
        bits = tl.load(p_row + o_latent).to(tl.int32)
    return tl.where((bits & SIZE) > INFINITY, INFINITY + 1, tl.maximum(bits, 0))


@triton.jit
def _words(p_row, start, n, MASKED: tl.constexpr, WORDS: tl.constexpr, INFINITY: tl.constexpr):
    """The chunk of a row that begins at ``start``, as words to count in."""
    o_latent = start + tl.arange(0, WORDS)
    words = _keys(p_row, o_latent, n, MASKED, INFINITY).to(tl.uint32)
    if INFINITY < 0x10000:
        high = _keys(p_row, o_latent + WORDS, n, MASKED, INFINITY).to(tl.uint32)
        words = words | (high << 16) | 0x80008000
    return words


@triton.jit
def _reach(words, t, INFINITY: tl.constexpr):
    """1 in each word, or each half of one, whose key is at least ``t``."""
    if INFINITY < 0x10000:
        return ((words - t.to(tl.uint32) * 0x10001) >> 15) & 0x10001
    else:
        return (words >= t.to(tl.uint32)).to(tl.uint32)


@triton.jit
def _resident(
    p_row,
    n,
    WORDS: tl.constexpr,
    SPAN: tl.constexpr,
    RESIDENT: tl.constexpr,
    FULL: tl.constexpr,
    INFINITY: tl.constexpr,
):
    """The row's first chunks, which stay in registers."""
    chunks = ()
    for i in tl.static_range(RESIDENT):
        chunks += (_words(p_row, i * SPAN, n, i >= FULL, WORDS, INFINITY),)  # type: ignore[assignment]
    return chunks


@triton.jit
def _threshold(
    chunks,
    p_row,
    n,
    k,
    guess,
    WORDS: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNKS: tl.constexpr,
    RESIDENT: tl.constexpr,
    INFINITY: tl.constexpr,
    STEP: tl.constexpr,
):
    """The t above which all keys are kept, and the number of those equal to it that are kept too.

    Invariant: at least k keys reach ``low`` (all reach 0), fewer than k, namely ``reached``, reach ``high``.
    """
    low = 0
    high = INFINITY + 2
    reached = 0
    probe = guess
    step = STEP
    while high - low > 1:
        counts = tl.zeros([WORDS], tl.uint32)
        for i in tl.static_range(RESIDENT):
            counts += _reach(chunks[i], probe, INFINITY)
        for i_chunk in range(RESIDENT, CHUNKS):
            counts += _reach(_words(p_row, i_chunk * SPAN, n, True, WORDS, INFINITY), probe, INFINITY)
        count = tl.sum(((counts & 0xFFFF) + (counts >> 16)).to(tl.int32), 0)
        # Exactly k reach the probe, so it ends the search: no key that equals a threshold just below would be kept.
        falls = count <= k
        low = tl.where(count == k, probe - 1, tl.where(falls, low, probe))
        high = tl.where(falls, probe, high)
        reached = tl.where(falls, count, reached)
        upwards = low + tl.minimum(step, INFINITY + 1 - low)
        downwards = high - tl.minimum(step, high - 1)
        between = low + (high - low) // 2
        probe = tl.where(high == INFINITY + 2, upwards, tl.where(low == 0, downwards, between))
        step = tl.minimum(step * 4, INFINITY // 8)
    return low, tl.where(low > 0, k - reached, 0)


@triton.jit
def _cut(
    chunks,
    p_row,
    n,
    t,
    room,
    WORDS: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNKS: tl.constexpr,
    RESIDENT: tl.constexpr,
    INFINITY: tl.constexpr,
):
    """The index of the last kept one among the keys equal to ``t``; -1 if none is."""
    cut = -1
    if room > 0:
        start, before, seen = 0, 0, 0  # of the run of WORDS keys that holds the cut; equal keys before it
        for i in tl.static_range(RESIDENT):
            start, before, seen = _pass_ties(chunks[i], i * SPAN, t, room, start, before, seen, WORDS, INFINITY)
        for i_chunk in range(RESIDENT, CHUNKS):
            words = _words(p_row, i_chunk * SPAN, n, True, WORDS, INFINITY)
            start, before, seen = _pass_ties(words, i_chunk * SPAN, t, room, start, before, seen, WORDS, INFINITY)
        o_latent = start + tl.arange(0, WORDS)
        tied = (_keys(p_row, o_latent, n, True, INFINITY) == t).to(tl.int32)
        kept = (tied > 0) & (tl.cumsum(tied, 0) + before <= room)
        cut = tl.max(tl.where(kept, o_latent, -1), 0)
    return cut


@triton.jit
def _pass_ties(words, begin, t, room, start, before, seen, WORDS: tl.constexpr, INFINITY: tl.constexpr):
    """Searches one chunk for the run that holds the ``room``-th key equal to ``t``."""
    # A chunk has at most 2^15 words, so a half cannot overflow into the other.
    counts = tl.sum((_reach(words, t, INFINITY) - _reach(words, t + 1, INFINITY)).to(tl.int32), 0)
    first = counts & 0xFFFF
    here = (seen < room) & (seen + first >= room)
    start = tl.where(here, begin, start)
    before = tl.where(here, seen, before)
    seen += first
    if INFINITY < 0x10000:
        second = counts >> 16
        here = (seen < room) & (seen + second >= room)
        start = tl.where(here, begin + WORDS, start)
        before = tl.where(here, seen, before)
        seen += second
    return start, before, seen


@triton.jit
def _kept(keys, o_latent, t, cut):
    return keys > tl.where(o_latent <= cut, t - 1, t)


@triton.jit
def _write_in_place(p_row, n, t, cut, soft_eps, SUMS: tl.constexpr, SPAN: tl.constexpr, INFINITY: tl.constexpr):
    """Writes the row's keys, which are its entries' bits, where they are kept, and zeros elsewhere. Returns the sum
    of v^2 / (v^2 + e^2) over them if SUMS, else 0."""
    soft = tl.zeros([SPAN if SUMS else 1], tl.float32)
    for start in range(0, n, SPAN):
        o_latent = start + tl.arange(0, SPAN)
        keys = _keys(p_row, o_latent, n, True, INFINITY)
        out = tl.where(_kept(keys, o_latent, t, cut), keys, 0)
        tl.store(p_row + o_latent, out.to(p_row.dtype.element_ty), mask=o_latent < n)
        if SUMS:
            value = _value(out, INFINITY)
            share = value * tl.rsqrt(value * value + soft_eps * soft_eps)
            soft += share * share
    return tl.sum(soft, 0)


@triton.jit
def _pair_sum(p_row, p_partner, n, SPAN: tl.constexpr, INFINITY: tl.constexpr):
    """The sum of squared differences between two rows that were written in place."""
    tl.debug_barrier()  # rows were written by other threads
    total = tl.zeros([SPAN], tl.float32)
    for start in range(0, n, SPAN):
        o_latent = start + tl.arange(0, SPAN)
        row = tl.load(p_row + o_latent, mask=o_latent < n, other=0).to(tl.int32)
        partner = tl.load(p_partner + o_latent, mask=o_latent < n, other=0).to(tl.int32)
        difference = _value(row, INFINITY) - _value(partner, INFINITY)
        total += difference * difference
    return tl.sum(total, 0)


@triton.jit
def _value(keys, INFINITY: tl.constexpr):
    """The float32 of keys that are the bits of floats."""
    if INFINITY > 0xFFFF:
        return keys.to(tl.float32, bitcast=True)
    elif INFINITY == 0x7F80:  # bfloat16: the upper half of a float32
        return (keys << 16).to(tl.float32, bitcast=True)
    else:
        return keys.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _write_compact(p_values, p_indices, p_row, n, k, t, cut, SPAN: tl.constexpr, INFINITY: tl.constexpr):
    """Writes the kept entries next to each other, and then the unused places."""
    place = 0
    for start in range(0, n, SPAN):
        o_latent = start + tl.arange(0, SPAN)
        keys = _keys(p_row, o_latent, n, True, INFINITY)
        kept = _kept(keys, o_latent, t, cut)
        ones = kept.to(tl.int32)
        o_place = place + tl.cumsum(ones, 0) - 1
        tl.store(p_values + o_place, keys.to(p_values.dtype.element_ty), mask=kept)
        tl.store(p_indices + o_place, o_latent, mask=kept)
        place += tl.sum(ones, 0)
    for unused in range(place, k, SPAN):
        o_place = unused + tl.arange(0, SPAN)
        tl.store(p_values + o_place, tl.zeros([SPAN], p_values.dtype.element_ty), mask=o_place < k)
        tl.store(p_indices + o_place, tl.full([SPAN], -1, tl.int32), mask=o_place < k)


@triton.jit
def _search(
    p_row,
    n,
    k,
    guess,
    INFINITY: tl.constexpr,
    STEP: tl.constexpr,
    CHUNKS: tl.constexpr,
    RESIDENT: tl.constexpr,
    FULL: tl.constexpr,
    WORDS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """What is kept of a row: keys above the first number, and those equal to it up to the column of the second."""
    chunks = _resident(p_row, n, WORDS, SPAN, RESIDENT, FULL, INFINITY)
    t, room = _threshold(chunks, p_row, n, k, guess, WORDS, SPAN, CHUNKS, RESIDENT, INFINITY, STEP)
    return t, _cut(chunks, p_row, n, t, room, WORDS, SPAN, CHUNKS, RESIDENT, INFINITY)


@triton.jit
def select_row(
    p_values,
    p_indices,
    p_row,
    n,
    k,
    guess,
    INFINITY: tl.constexpr,
    STEP: tl.constexpr,
    CHUNKS: tl.constexpr,
    RESIDENT: tl.constexpr,
    FULL: tl.constexpr,
    WORDS: tl.constexpr,
):
    """The compact selection in one row, for other kernels. Returns the guess for their next row."""
    SPAN: tl.constexpr = 2 * WORDS if INFINITY < 0x10000 else WORDS
    t, cut = _search(p_row, n, k, guess, INFINITY, STEP, CHUNKS, RESIDENT, FULL, WORDS, SPAN)
    _write_compact(p_values, p_indices, p_row, n, k, t, cut, SPAN, INFINITY)
    return tl.maximum(t, 1)


@triton.jit(do_not_specialize=["n_tokens", "k", "rows"])
def select_kernel(
    pre,  # [n_tokens, n] as integers of the same bits; becomes z unless COMPACT
    values,  # [n_tokens, k], likewise
    indices,  # [n_tokens, k] int32
    sums,  # [2, n_tokens] float32 or None: by row, the temporal sum of its pair (at the second row) and the soft count
    n_tokens,
    n,
    stride_pre,
    k,
    rows,  # of one program; even if PAIRED
    soft_eps,
    INFINITY: tl.constexpr,
    ONE: tl.constexpr,
    STEP: tl.constexpr,
    COMPACT: tl.constexpr,
    PAIRED: tl.constexpr,
    CHUNKS: tl.constexpr,
    RESIDENT: tl.constexpr,  # chunks kept in registers
    FULL: tl.constexpr,  # chunks that need no mask
    WORDS: tl.constexpr,
):
    SPAN: tl.constexpr = 2 * WORDS if INFINITY < 0x10000 else WORDS
    first = tl.program_id(0) * rows
    guess = ONE
    for i_token in range(first, tl.minimum(first + rows, n_tokens)):
        p_row = pre + tl.cast(i_token, tl.int64) * stride_pre
        t, cut = _search(p_row, n, k, guess, INFINITY, STEP, CHUNKS, RESIDENT, FULL, WORDS, SPAN)
        guess = tl.maximum(t, 1)
        # The row is read again, from the cache: registers do not hold its chunks and the output together.
        if COMPACT:
            o_place = tl.cast(i_token, tl.int64) * k
            _write_compact(values + o_place, indices + o_place, p_row, n, k, t, cut, SPAN, INFINITY)
        else:
            soft = _write_in_place(p_row, n, t, cut, soft_eps, sums is not None, SPAN, INFINITY)
            if sums is not None:
                temporal = 0.0
                if PAIRED:
                    if i_token % 2 == 1:
                        temporal = _pair_sum(p_row, p_row - stride_pre, n, SPAN, INFINITY)
                tl.store(sums + i_token, temporal)
                tl.store(sums + n_tokens + i_token, soft / n)


def select(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest strictly positive entries of each row of ``pre [n_tokens, n_latents]``, ascending by index.

    Returns values in the dtype of pre and indices in int32, ``[n_tokens, k]``; unused places come last, with
    value 0 and index -1. The payload of a NaN may change.
    """
    pre = launch.rows_contiguous(pre)
    length = group_length(pre.shape[1], k)
    return select_directly(pre, k) if length is None else select_pruned(pre, k, length, select_directly)


def select_directly(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`select` by a search of whole rows."""
    if _compiled("select", pre):
        return native.select(pre, k)
    values = launch.empty(len(pre), k, dtype=pre.dtype, device=pre.device)
    indices = launch.empty(len(pre), k, dtype=torch.int32, device=pre.device)
    _launch(pre, k, values, indices)
    return values, indices


def keep_top_(pre: Tensor, k: int) -> None:
    """Sets all of ``pre [n_tokens, n_latents]`` to 0 except the entries that `select` takes.

    Raises:
        ValueError: rows of pre are not contiguous, or overlap.
    """
    check_rows("pre", pre)
    if _compiled("keep_top", pre):
        native.keep_top_(pre, k)
    else:
        _launch(pre, k, None, None)


def keep_top_with_sums_(pre: Tensor, k: int, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
    """As `keep_top_`, and returns what `code_sums` gives for the result.

    Raises:
        ValueError: rows of pre are not contiguous, or overlap.
    """
    check_rows("pre", pre)
    if _compiled("keep_top", pre) or not launch.config("keep_top", pre, pre.shape[1])["sums"]:
        keep_top_(pre, k)
        return code_sums(pre, paired, soft_eps)
    sums = launch.empty(2, len(pre), dtype=torch.float32, device=pre.device)
    _launch(pre, k, None, None, sums, paired, soft_eps)
    temporal, soft = sums.sum(1).unbind()
    return temporal, soft


def check_rows(name: str, out: Tensor) -> None:
    """Raises ValueError if rows that are written share memory."""
    if len(out) > 1 and out.stride(0) < out.shape[1]:
        raise ValueError(f"rows of {name} overlap: pass a contiguous tensor")


def _compiled(name: str, pre: Tensor) -> bool:
    """Whether to use the kernel of csrc/cuda: if it was built and measured to be faster (`tide_kernels.tune`)."""
    wanted = launch.config(name, pre, pre.shape[1])["compiled"]
    return bool(wanted) and pre.is_cuda and native.cuda_unavailable() is None


def _launch(
    pre: Tensor,
    k: int,
    values: Tensor | None,
    indices: Tensor | None,
    sums: Tensor | None = None,
    paired: bool = False,
    soft_eps: float = 0.0,
) -> None:
    n_tokens, n_latents = pre.shape
    config = launch.config("keep_top" if values is None else "select", pre, n_latents)
    # A program's first row has no predecessor to start from, but a short batch needs as many programs as possible.
    rows = max(1, min(config["rows"], n_tokens // _ROWS_BUSY))
    if paired:
        rows += rows % 2  # a program has both rows of a pair
    integers = INTEGERS[pre.dtype]
    launch.launch(
        select_kernel,
        (triton.cdiv(n_tokens, rows),),
        pre.device,
        pre.view(integers),
        None if values is None else values.view(integers),
        indices,
        sums,
        n_tokens,
        n_latents,
        pre.stride(0),
        k,
        rows,
        soft_eps,
        PAIRED=paired,
        **selection_constants(pre.dtype, n_latents, config, compact=values is not None),
        **launch.options(config),
    )


def selection_constants(dtype: torch.dtype, n_latents: int, config: Config, compact: bool) -> dict[str, int | bool]:
    span = config["WORDS"] * (2 if dtype.itemsize == 2 else 1)
    chunks = triton.cdiv(n_latents, span)
    return {
        "INFINITY": INFINITY_BITS[dtype],
        "ONE": _ONE[dtype],
        "STEP": _STEP[dtype],
        "COMPACT": compact,
        "CHUNKS": chunks,
        "RESIDENT": min(chunks, config["RESIDENT"]),
        "FULL": n_latents // span,
        "WORDS": config["WORDS"],
    }


_FORMS = ("in place", "in place with sums", "compact")


def _spec(arch: str, dtype: torch.dtype, n_latents: int, form: str) -> Spec:
    compact, sums = form == "compact", form.endswith("sums")
    config = static("select" if compact else "keep_top", arch, dtype, n_latents)
    integer = "*i16" if dtype.itemsize == 2 else "*i32"
    signature = {"pre": integer, "n_tokens": "i32", "n": "i32", "stride_pre": "i32", "k": "i32", "rows": "i32"}
    signature["soft_eps"] = "fp32"
    constants: dict[str, object] = {**selection_constants(dtype, n_latents, config, compact), "PAIRED": sums}
    results = {"values": (integer, compact), "indices": ("*i32", compact), "sums": ("*fp32", sums)}
    signature |= {name: kind for name, (kind, used) in results.items() if used}
    constants |= {name: None for name, (_, used) in results.items() if not used}
    name = f"select {form} {TYPES[dtype]} n={n_latents}"
    return spec(name, arch, select_kernel, signature, constants, config, ("n", "stride_pre"))


AOT = [
    _spec(arch, dtype, n_latents, form)
    for arch in ARCHS
    for dtype, n_latents in (
        (torch.bfloat16, 4608),
        (torch.bfloat16, 18432),
        (torch.bfloat16, 73728),
        (torch.float16, 18432),
        (torch.float32, 4608),
        (torch.float32, 18432),
        (torch.float32, 73728),
    )
    for form in _FORMS
]
AOT += [without(_spec(arch, torch.bfloat16, 18432, "in place with sums"), PAIRED=False) for arch in ARCHS]
