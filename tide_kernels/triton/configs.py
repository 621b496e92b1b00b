"""Launch configurations: a static table, and a file of measured entries that override it.

A configuration holds the block sizes of a kernel (upper case: its constexprs), choices of the host (lower
case) and the compiler's `OPTIONS`. The table is deliberately coarse: it goes by architecture, width of
the dtype and the one size that matters most: the number of latents for `select`, the width of a token for the rest.

The file is ``$TIDE_KERNELS_CACHE``, or ``tide-kernels/tuned.json`` in the user's cache directory: a JSON
object of configurations by `key`. It is read when a kernel is first launched, never at import.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from tide_kernels.dispatch import BackendError

Config = dict[str, int]

OPTIONS = ("num_warps", "num_stages", "maxnreg")  # of the compiler; maxnreg is optional, and unknown to ROCm
INTERPRETER = "interpreter"  # the architecture of Triton's interpreter


class Rule(NamedTuple):
    """Applies to architectures that begin with ``arch``, dtypes of ``bits`` (0: any) and sizes up to ``up_to``."""

    arch: str
    bits: int
    up_to: float
    config: Config


_ANY = float("inf")
_NEVER = 2**20  # tokens of a group, more than any chunk has


def _config(warps: int, stages: int = 1, **blocks: int) -> Config:
    return {**blocks, "num_warps": warps, "num_stages": stages}


def _tile(m: int, n: int, k: int, warps: int, stages: int, **more: int) -> Config:
    return _config(warps, stages, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, SWIZZLE=8, **more)


def _encode(m: int, n: int, k: int, warps: int, stages: int, **more: int) -> Config:
    return _config(warps, stages, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, ROWS=warps, COLUMNS=512, rows=4, **more)


_PRODUCT = (
    Rule(INTERPRETER, 0, _ANY, _tile(32, 32, 32, 4, 1)),
    Rule("gfx", 16, _ANY, _tile(128, 128, 64, 8, 2)),
    Rule("gfx", 32, _ANY, _tile(64, 64, 32, 4, 2)),
    Rule("", 16, _ANY, _tile(128, 128, 64, 8, 3)),
    Rule("", 32, _ANY, _tile(64, 64, 32, 4, 3)),
)

# WORDS: integers of a chunk of the row, two 16-bit keys or one 32-bit key each; RESIDENT: chunks kept in
# registers; rows: rows of one program; compiled: 1 for the kernel of csrc/cuda if it was built.
_SELECT = (
    Rule(INTERPRETER, 0, 4096, _config(4, WORDS=128, RESIDENT=1, rows=3, compiled=0)),
    Rule(INTERPRETER, 0, _ANY, _config(4, WORDS=8192, RESIDENT=4, rows=3, compiled=0)),
    Rule("sm_9", 16, 8192, _config(4, WORDS=512, RESIDENT=8, rows=8, compiled=1, maxnreg=128)),
    Rule("sm", 16, 8192, _config(4, WORDS=512, RESIDENT=8, rows=8, compiled=0, maxnreg=128)),
    Rule("sm_9", 16, 32768, _config(8, WORDS=1024, RESIDENT=16, rows=8, compiled=1)),
    Rule("", 16, 8192, _config(4, WORDS=512, RESIDENT=8, rows=8, compiled=0)),
    Rule("", 16, 32768, _config(8, WORDS=1024, RESIDENT=16, rows=8, compiled=0)),
    Rule("sm_100", 16, _ANY, _config(16, WORDS=2048, RESIDENT=8, rows=8, compiled=0, maxnreg=128)),
    Rule("sm_9", 16, _ANY, _config(16, WORDS=2048, RESIDENT=18, rows=8, compiled=1, maxnreg=128)),
    Rule("sm", 16, _ANY, _config(16, WORDS=2048, RESIDENT=18, rows=8, compiled=0, maxnreg=128)),
    Rule("", 16, _ANY, _config(16, WORDS=2048, RESIDENT=18, rows=8, compiled=0)),
    Rule("sm", 32, 8192, _config(8, WORDS=1024, RESIDENT=8, rows=8, compiled=0, maxnreg=128)),
    Rule("", 32, 8192, _config(8, WORDS=1024, RESIDENT=8, rows=8, compiled=0)),
    Rule("sm_100", 32, _ANY, _config(16, WORDS=2048, RESIDENT=16, rows=8, compiled=0, maxnreg=128)),
    Rule("sm", 32, _ANY, _config(16, WORDS=2048, RESIDENT=18, rows=8, compiled=0, maxnreg=128)),
    Rule("", 32, _ANY, _config(16, WORDS=2048, RESIDENT=18, rows=8, compiled=0)),
)

# The first rule that applies is taken. The interpreter's blocks are small, so that small tests have several tiles.
# Those of sm_9 in 16 bits were measured on an H200 (benchmarks/NOTES.md). None of the others was: they compile without
# spills and within the available shared memory.
_TABLE: dict[str, tuple[Rule, ...]] = {
    # Compact codes, and rows in place. sums: 1 if selection in place also adds up the codes' sums, for which
    # `code_sums` would read them again.
    "select": _SELECT,
    "keep_top": tuple(rule._replace(config=rule.config | {"sums": 1}) for rule in _SELECT),
    # ENTRIES: of one program, in groups.
    "prune": (
        Rule(INTERPRETER, 0, _ANY, _config(4, ENTRIES=256)),
        Rule("", 0, _ANY, _config(4, ENTRIES=4096)),
    ),
    # WORDS: of 32 columns that a warp reads at once; ROOM: unused places marked at once.
    "select_above": (
        Rule(INTERPRETER, 0, _ANY, _config(1, WORDS=2, ROOM=16)),
        Rule("", 0, _ANY, _config(1, WORDS=32, ROOM=256)),
    ),
    # Rows that are read as above but written in place, or again.
    "threshold_rows": (
        Rule(INTERPRETER, 0, _ANY, _config(4, COLUMNS=128)),
        Rule("", 16, _ANY, _config(4, COLUMNS=2048)),
        Rule("", 32, _ANY, _config(4, COLUMNS=1024)),
    ),
    # PLACES that a program loads at once, and GROUPS of tokens that it sums up.
    "near_places": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PLACES=16, GROUPS=2)),
        Rule("", 0, _ANY, _config(1, PLACES=32, GROUPS=32)),
    ),
    # TOKENS of one group that a program goes through, ROWS and COLUMNS at once.
    "near_gradient": (
        Rule(INTERPRETER, 0, _ANY, _config(4, TOKENS=16, ROWS=4, COLUMNS=64)),
        Rule("sm_100", 16, _ANY, _config(4, TOKENS=128, ROWS=4, COLUMNS=256, maxnreg=128)),
        Rule("", 16, _ANY, _config(4, TOKENS=128, ROWS=4, COLUMNS=256)),
        Rule("", 32, _ANY, _config(4, TOKENS=128, ROWS=4, COLUMNS=128)),
    ),
    # PIECES of a row that are read at once, with a column for each thread; copies: of the counts.
    "key_histogram": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PIECES=2, COLUMNS=64, copies=3)),
        Rule("gfx", 0, _ANY, _config(4, PIECES=8, COLUMNS=256, copies=32)),
        Rule("", 0, _ANY, _config(4, PIECES=8, COLUMNS=128, copies=32)),
    ),
    # PLACES: weight rows that a program loads at once; COLUMNS: the greatest width of a piece of them, of which the
    # one that pads d_model the least is used.
    "gather": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PLACES=4, COLUMNS=64)),
        Rule("", 0, 256, _config(1, PLACES=8, COLUMNS=256)),
        Rule("sm_9", 16, _ANY, _config(1, PLACES=8, COLUMNS=512)),
        Rule("", 0, _ANY, _config(2, PLACES=8, COLUMNS=512)),
    ),
    "sampled": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PLACES=4, COLUMNS=64)),
        Rule("", 0, _ANY, _config(4, PLACES=16, COLUMNS=256)),
    ),
    "scatter": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PLACES=4, COLUMNS=64)),
        Rule("sm_9", 16, _ANY, _config(1, PLACES=8, COLUMNS=512)),
        Rule("", 0, _ANY, _config(2, PLACES=8, COLUMNS=512)),
    ),
    "fold": (
        Rule(INTERPRETER, 0, _ANY, _config(4, LATENTS=4, COLUMNS=64)),
        Rule("", 0, _ANY, _config(2, LATENTS=64, COLUMNS=1024)),
    ),
    # ahead: 1 to load the next places' rows while those before are worked on.
    "backward_latents": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PLACES=4, COLUMNS=64, ahead=1)),
        # A lane loads 16 bytes, so that a row takes whole warps and a lane holds a column of all places.
        Rule("sm_9", 16, 1280, _config(1, PLACES=1, COLUMNS=256, ahead=0)),
        Rule("", 16, 1280, _config(1, PLACES=2, COLUMNS=256, ahead=0)),
        Rule("", 16, 2560, _config(2, PLACES=2, COLUMNS=512, ahead=0)),
        Rule("", 16, 5120, _config(4, PLACES=2, COLUMNS=1024, ahead=0)),
        Rule("", 16, _ANY, _config(8, PLACES=2, COLUMNS=2048, ahead=0)),
        Rule("", 32, 1280, _config(2, PLACES=2, COLUMNS=256, ahead=0)),
        Rule("", 32, 2560, _config(4, PLACES=2, COLUMNS=512, ahead=0)),
        Rule("", 32, _ANY, _config(8, PLACES=2, COLUMNS=1024, ahead=0)),
    ),
    # bitmask: whether to order codes of `select` by a mask of bits, n_tokens a latent, instead of a sort. An estimate:
    # the mask is written and read once, so that a sort wins where the mask is large and codes are short.
    # PLACES of one program; LATENTS and GROUPS, of 256 tokens each, whose bits are counted at once.
    "transpose": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PLACES=16, LATENTS=4, GROUPS=2, bitmask=1)),
        Rule("", 0, 32768, _config(4, PLACES=256, LATENTS=16, GROUPS=16, bitmask=1)),
        Rule("", 0, _ANY, _config(4, PLACES=256, LATENTS=16, GROUPS=16, bitmask=0)),
    ),
    # Tiles of matrix products; SWIZZLE: rows of tiles in flight together.
    "product": _PRODUCT,
    # PARTS: pieces of a tile, finished one after another; tma: 1 for copies by descriptors; persistent: programs of a
    # multiprocessor that take one tile after another by descriptors, 0 for a program a tile.
    "masked_gradient": (
        Rule(INTERPRETER, 0, _ANY, _tile(32, 32, 32, 4, 1, PARTS=2, tma=0, persistent=0)),
        Rule("gfx", 16, _ANY, _tile(128, 128, 64, 8, 2, PARTS=1)),
        Rule("gfx", 32, _ANY, _tile(64, 64, 32, 4, 2, PARTS=1)),
        Rule("sm_8", 16, _ANY, _tile(128, 64, 64, 8, 3, PARTS=2)),
        Rule("sm_9", 16, _ANY, _tile(128, 128, 64, 4, 3, PARTS=2, tma=1, persistent=0)),
        Rule("", 16, _ANY, _tile(128, 128, 64, 8, 3, PARTS=2, tma=0, persistent=0)),
        Rule("", 32, _ANY, _tile(64, 64, 32, 4, 3, PARTS=1)),
    ),
    # The tile of the product; ROWS and COLUMNS of an item of the modulation, as for modulate; WORDS and RESIDENT as
    # for select, and rows those of an item; height: least number of blocks of a band; programs: of a multiprocessor.
    "encode": (
        Rule(INTERPRETER, 0, _ANY, _encode(16, 32, 32, 4, 1, WORDS=32, RESIDENT=1, height=1, programs=1)),
        Rule("sm_9", 16, _ANY, _encode(128, 128, 64, 4, 3, WORDS=512, RESIDENT=18, height=4, programs=2)),
        Rule("gfx", 16, _ANY, _encode(128, 128, 64, 8, 2, WORDS=1024, RESIDENT=9, height=4, programs=1)),
        Rule("", 16, _ANY, _encode(128, 128, 64, 8, 3, WORDS=1024, RESIDENT=9, height=4, programs=1)),
        Rule("gfx", 32, _ANY, _encode(64, 64, 32, 4, 2, WORDS=512, RESIDENT=6, height=8, programs=1)),
        Rule("sm_8", 32, _ANY, _encode(64, 64, 32, 4, 3, WORDS=512, RESIDENT=6, height=8, programs=2, maxnreg=240)),
        Rule("", 32, _ANY, _encode(64, 64, 32, 8, 3, WORDS=1024, RESIDENT=4, height=8, programs=1)),
    ),
    # cublas: whether to use PyTorch's own product where there is one.
    "pre_activations": (Rule("", 0, _ANY, {"cublas": 1}),),
    # group_tokens: with fewer tokens per group on average, the gradients of scale and shift are computed from x_mod's,
    # which is one product of cuBLAS more but estimated to be faster for any group. The tile matters only where
    # tuning lowers group_tokens.
    "encoder_gradients": (
        Rule(INTERPRETER, 0, _ANY, _tile(32, 32, 32, 4, 1, group_tokens=4)),
        Rule("gfx", 16, _ANY, _tile(128, 64, 64, 8, 2, group_tokens=_NEVER)),
        Rule("sm_9", 16, _ANY, _tile(128, 128, 64, 8, 3, group_tokens=_NEVER)),
        Rule("", 16, _ANY, _tile(128, 64, 64, 8, 3, group_tokens=_NEVER)),
        Rule("sm_9", 32, _ANY, _tile(64, 64, 32, 4, 2, group_tokens=_NEVER)),
        Rule("sm", 32, _ANY, _tile(32, 64, 32, 4, 2, group_tokens=_NEVER)),
        Rule("", 32, _ANY, _tile(64, 64, 32, 4, 2, group_tokens=_NEVER)),
    ),
    # ROWS: tokens of a program, which are in registers; COLUMNS: as for gather, at least.
    "modulate": (
        Rule(INTERPRETER, 0, _ANY, _config(4, ROWS=8, COLUMNS=64)),
        Rule("gfx", 32, 1536, _config(4, ROWS=4, COLUMNS=512)),
        Rule("", 0, 1536, _config(2, ROWS=4, COLUMNS=512)),
        Rule("", 0, 3072, _config(4, ROWS=4, COLUMNS=512)),
        Rule("", 0, 6144, _config(4, ROWS=2, COLUMNS=512)),
        Rule("", 0, _ANY, _config(8, ROWS=1, COLUMNS=512)),
    ),
    # BLOCK: keys that a program of `order` counts at once.
    "order": (Rule(INTERPRETER, 0, _ANY, _config(4, BLOCK=16)), Rule("", 0, _ANY, _config(8, BLOCK=4096))),
    # PLACES: of either row of a pair that are compared at once.
    "pair_differences": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PLACES=4)),
        Rule("sm_9", 0, _ANY, _config(2, PLACES=32)),
        Rule("", 0, _ANY, _config(1, PLACES=32)),
    ),
    # As for scatter.
    "modulation_gradients": (
        Rule(INTERPRETER, 0, _ANY, _config(4, PLACES=4, COLUMNS=64)),
        Rule("", 0, _ANY, _config(2, PLACES=8, COLUMNS=512)),
    ),
    # BLOCK: elements of a program.
    "code_terms": (Rule(INTERPRETER, 0, _ANY, _config(4, BLOCK=16)), Rule("", 0, _ANY, _config(4, BLOCK=1024))),
    "add_parts": (Rule(INTERPRETER, 0, _ANY, _config(4, BLOCK=64)), Rule("", 0, _ANY, _config(2, BLOCK=256))),
    "misfit": (Rule(INTERPRETER, 0, _ANY, _config(4, BLOCK=64)), Rule("", 0, _ANY, _config(4, BLOCK=4096))),
    "reconstruction_loss": (
        Rule(INTERPRETER, 0, _ANY, _config(4, COLUMNS=64)),
        Rule("", 0, _ANY, _config(2, COLUMNS=1024)),
    ),
    "code_sums": (
        Rule(INTERPRETER, 0, _ANY, _config(4, COLUMNS=64)),
        Rule("sm_9", 16, _ANY, _config(4, COLUMNS=1024)),
        Rule("sm_100", 32, _ANY, _config(4, COLUMNS=1024)),
        Rule("", 0, _ANY, _config(4, COLUMNS=2048)),
    ),
}

# Configurations worth a trial that no climb by single entries reaches, since several change together.
FAR: dict[str, tuple[Config, ...]] = {
    "masked_gradient": (
        {"tma": 1, "BLOCK_M": 128, "BLOCK_N": 256, "PARTS": 4, "num_warps": 8, "num_stages": 4},
        {"tma": 1, "BLOCK_M": 128, "BLOCK_N": 128, "PARTS": 2, "num_warps": 4},
        {"tma": 1, "BLOCK_M": 128, "BLOCK_N": 256, "PARTS": 4, "num_warps": 8},
        {"tma": 1, "BLOCK_M": 128, "BLOCK_N": 256, "PARTS": 4, "persistent": 1, "num_warps": 8},
        {"tma": 1, "BLOCK_M": 128, "BLOCK_N": 128, "PARTS": 4, "persistent": 2, "num_warps": 4},
    ),
    "encode": ({"BLOCK_N": 256, "num_warps": 8, "WORDS": 1024, "RESIDENT": 9, "programs": 1},),
}


def key(kernel: str, arch: str, dtype: torch.dtype, size: int) -> str:
    """The name of a configuration in the file. Sizes that round up to the same power of two share one."""
    bucket = 1 << max(size - 1, 0).bit_length()
    return f"{kernel}/{arch}/{str(dtype).removeprefix('torch.')}/{bucket}"


def static(kernel: str, arch: str, dtype: torch.dtype, size: int) -> Config:
    """The table's configuration."""
    bits = dtype.itemsize * 8
    for rule in _TABLE[kernel]:
        if arch.startswith(rule.arch) and rule.bits in (0, bits) and size <= rule.up_to:
            return rule.config
    raise KeyError(f"{kernel} has no launch configuration for {arch}, {dtype}, size {size}: add a rule")


@cache
def lookup(kernel: str, arch: str, dtype: torch.dtype, size: int) -> Config:
    """The configuration of a launch: the table's, overridden by the file's entries.

    Raises `BackendError` for a file that does not hold launch configurations, or holds an impossible one.
    """
    table, name = static(kernel, arch, dtype, size), key(kernel, arch, dtype, size)
    measured = _measured().get(name, {})
    for entry, value in measured.items():
        if not _is_possible(entry, value, table):
            raise BackendError(f"{cache_file()}: {entry} of {name} is {value}: delete the file and measure again")
    return {**table, **measured}


def _is_possible(entry: str, value: int, table: Config) -> bool:
    """Whether a kernel can be launched with the entry: sizes are powers of two, at least 16 for tensor cores."""
    if entry == "maxnreg":
        return 16 <= value <= 255
    if entry == "num_stages":
        return 1 <= value <= 8
    if entry not in table:
        return False
    if entry.islower() and entry != "num_warps":
        return 0 <= value <= 2**20
    if entry == "RESIDENT":
        return 1 <= value <= 2**10
    low, high = (1, 32) if entry == "num_warps" else (16 if entry.startswith("BLOCK_") else 1, 2**16)
    return low <= value <= high and value & (value - 1) == 0


def reload() -> None:
    """Forgets what was read from the file. Call this after writing to it."""
    _measured.cache_clear()
    lookup.cache_clear()


@contextmanager
def using(path: Path) -> Iterator[None]:
    """Launches use this file of configurations; if it is missing, the table alone."""
    saved = os.environ.get("TIDE_KERNELS_CACHE")
    os.environ["TIDE_KERNELS_CACHE"] = str(path)
    reload()
    try:
        yield
    finally:
        if saved is None:
            del os.environ["TIDE_KERNELS_CACHE"]
        else:
            os.environ["TIDE_KERNELS_CACHE"] = saved
        reload()


def cache_file() -> Path:
    """The file of measured configurations."""
    if path := os.environ.get("TIDE_KERNELS_CACHE"):
        return Path(path)
    if sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "tide-kernels" / "tuned.json"


@cache
def _measured() -> dict[str, Config]:
    return read(cache_file())


def read(path: Path) -> dict[str, Config]:
    """The configurations in a file; none if there is no file. Raises `BackendError` if it holds anything else."""
    if not path.exists():
        return {}
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        entries = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise BackendError(f"{path} holds no launch configurations ({reason}): delete it and measure again") from error
    valid = isinstance(entries, dict) and all(
        isinstance(entry, dict) and all(type(value) is int for value in entry.values()) for entry in entries.values()
    )
    if not valid:
        raise BackendError(f"{path} is not a JSON object of launch configurations: delete it and measure again")
    return entries
