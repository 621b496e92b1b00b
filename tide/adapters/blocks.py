"""Blocks of a transformer by number, from the end, or by name."""

from __future__ import annotations

from collections.abc import Sequence

from tide.errors import TideError

#: A number, counted from the end if negative, or "penultimate".
Block = int | str


def block_number(block: Block, n: int) -> int:
    """The number of ``block`` in a transformer of ``n`` blocks; "penultimate" is the last but one."""
    index = n - 2 if block == "penultimate" else block
    if not isinstance(index, int) or not -n <= index < n or (block == "penultimate" and n < 2):
        raise TideError(f"block {block} does not exist; this transformer has blocks 0..{n - 1}")
    return index % n


def block_numbers(blocks: Sequence[Block], n: int) -> list[int]:
    """The numbers of blocks, each once, in the order given; "all" stands for every block."""
    listed = (each for block in blocks for each in (range(n) if block == "all" else [block]))
    return list(dict.fromkeys(block_number(each, n) for each in listed))
