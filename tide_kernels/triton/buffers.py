"""The shared-memory buffers of matrix products: how many there are, and whether one is overwritten too early.

An asynchronous product reads its operands from shared memory after the instruction that starts it, while the next
tiles are copied. No copy may go to a buffer that a product in flight reads. Triton (3.6 and 3.7) does not guarantee
that: a tile that is also used in registers gets too few buffers, the product is left in flight, and the next tile is
copied over what it still reads.

A kernel's operations are followed as the compiler ordered them, some rounds of each loop, with the buffers' numbers
computed. Both branches of a condition are followed, one after the other.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tide_kernels.triton.ttgir import LOOPS, Op, Value, parse

_ROUNDS = 10  # of an innermost loop that are followed: more than there are buffers
_ROUNDS_AROUND = 2  # of a loop that holds others
_VIEWS = ("memdesc_trans", "memdesc_reshape", "memdesc_subslice", "memdesc_reinterpret")
_LOADED = ("local_load", "trans", "convert_layout", "fp_to_fp", "reshape", "extf", "truncf", "bitcast")
_PRODUCTS = ("warp_group_dot", "tc_gen5_mma", "dot")
_READS = (*_PRODUCTS, "warp_group_dot_wait", "wait_barrier", "tc_gen5_commit", "local_dealloc", "yield", "condition")
_WRITES = ("async_copy_global_to_local", "async_tma_copy_global_to_local", "local_store")
_SIDES = ("left", "right")
_INTEGERS: dict[str, Callable[[int, int], int]] = {
    "addi": operator.add,
    "subi": operator.sub,
    "muli": operator.mul,
    "xori": operator.xor,
    "andi": operator.and_,
    "remsi": operator.mod,
    "remui": operator.mod,
}
_LITERALS = {"true": 1, "false": 0}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


@dataclass(frozen=True)
class Tile:
    """A buffer of an allocation; ``number`` is None where it cannot be computed."""

    allocation: Op
    number: int | None
    loaded: bool = False  # into registers

    @property
    def depth(self) -> int:
        """How many buffers the allocation has: tiles have two dimensions."""
        shape = re.search(r"!ttg\.memdesc<((?:\d+x)+)", self.allocation.text.rsplit("->", 1)[-1])
        sizes = shape[1].rstrip("x").split("x") if shape else []
        return int(sizes[0]) if len(sizes) > 2 else 1


@dataclass
class _Flight:
    """A product that was started."""

    operands: list[Tile | None]
    arrives: list[Tile]  # at these barriers, when it is complete


@dataclass
class Follower:
    """Follows a kernel; afterwards ``races`` holds its faults and ``products`` the operands of each product."""

    races: set[str] = field(default_factory=set)
    products: dict[Op, list[Tile | None]] = field(default_factory=dict)
    _known: dict[Value, int | Tile] = field(default_factory=dict)
    _flying: list[_Flight] = field(default_factory=list)

    def buffers(self) -> tuple[tuple[int, ...], ...]:
        """For each product of the innermost loops that hold one, the number of buffers of its left and its right
        operand; 0 for one that never was in shared memory."""
        deepest = max((op.loops for op in self.products), default=0)
        return tuple(
            tuple(0 if tile is None else tile.depth for tile in operands)
            for op, operands in self.products.items()
            if op.loops == deepest
        )

    def follow(self, ops: list[Op]) -> None:
        for op in ops:
            if op.kind == "for":
                self._loop(op)
            elif op.kind == "while":
                for _ in range(_ROUNDS_AROUND):
                    self.follow(op.body)
            else:
                self._step(op)
                self.follow(op.body)

    def _loop(self, loop: Op) -> None:
        carried = [self._known.get(value) for value in loop.initial]
        around = any(op.kind in LOOPS for op in _inside(loop))
        for _ in range(_ROUNDS_AROUND if around else _ROUNDS):
            self._bind(loop, carried, inside=True)
            self.follow(loop.body)
            carried = [self._known.get(value) for value in loop.final]
        self._bind(loop, carried, inside=False)

    def _bind(self, op: Op, found: list[int | Tile | None], inside: bool = False) -> None:
        for place, value in enumerate(found):
            if value is None:
                self._known.pop(Value(op, place, inside), None)
            else:
                self._known[Value(op, place, inside)] = value

    def _step(self, op: Op) -> None:
        found = [self._known.get(value) for value in op.operands]
        tiles = [value if isinstance(value, Tile) else None for value in found]
        if op.kind in _PRODUCTS:
            self._product(op, tiles)
        elif op.kind == "warp_group_dot_wait":
            left = re.search(r"pendings = (\d+)", op.text)
            self._flying = self._flying[max(0, len(self._flying) - int(left[1] if left else 0)) :]
            self._bind(op, found)
        elif op.kind == "tc_gen5_commit" and tiles[0] is not None:
            for flight in self._flying:
                flight.arrives = flight.arrives or [tiles[0]]
        elif op.kind == "wait_barrier" and tiles[0] is not None:
            self._wait(tiles[0])
        elif op.kind == "local_alloc":
            self._bind(op, [Tile(op, 0)])
            if op.operands:
                self._overwrite(Tile(op, 0))
        elif op.kind == "memdesc_index" and tiles[0] is not None:
            number = found[1] if len(found) > 1 and isinstance(found[1], int) else None
            self._bind(op, [Tile(tiles[0].allocation, number)])
        elif op.kind in _VIEWS and tiles:
            self._bind(op, [tiles[0]])
        elif op.kind in _LOADED and tiles:
            self._bind(op, [Tile(tiles[0].allocation, tiles[0].number, True) if tiles[0] else None])
        elif op.kind not in _READS:
            self._bind(op, [_integer(op, found)])
            targets = [tile for tile in tiles if tile is not None and not tile.loaded]
            for tile in targets:
                self._overwrite(tile)
            if op.kind in _WRITES and not targets:
                self.races.add(f"cannot tell which buffer is written by {op.text[:60]}")

    def _product(self, op: Op, tiles: list[Tile | None]) -> None:
        self.products[op] = operands = tiles[:2]
        if not _is_asynchronous(op):
            return
        kinds = op.text.rsplit(" : ", 1)[-1].split(" * ") if op.kind == "warp_group_dot" else []
        for side, tile, kind in zip(_SIDES, operands, kinds, strict=False):
            if kind.startswith("!ttg.memdesc") and tile is None:
                self.races.add(f"cannot tell which buffer holds the {side} operand of {op.text[:60]}")
        self._flying.append(_Flight(operands, [tile for tile in tiles[2:] if tile is not None]))

    def _wait(self, barrier: Tile) -> None:
        """Products complete in their order; a barrier is waited for once for each product that arrives at it."""
        for i, flight in enumerate(self._flying):
            if barrier in flight.arrives:
                self._flying = self._flying[i + 1 :]
                return

    def _overwrite(self, tile: Tile) -> None:
        for i, side in enumerate(_SIDES):
            read = [f.operands[i] for f in self._flying if i < len(f.operands)]
            same = [other for other in read if other is not None and other.allocation is tile.allocation]
            unknown = tile.number is None or any(other.number is None for other in same)
            if len(same) >= tile.depth if unknown else any(other.number == tile.number for other in same):
                count = f"{tile.depth} buffer{'s' * (tile.depth > 1)}"
                self.races.add(f"copies a tile over a product's {side} operand that it may still read: {count}")


def _inside(op: Op) -> Iterator[Op]:
    for inner in op.body:
        yield inner
        yield from _inside(inner)


def _is_asynchronous(op: Op) -> bool:
    return (op.kind == "warp_group_dot" and "isAsync = true" in op.text) or (
        op.kind == "tc_gen5_mma" and "is_async" in op.text
    )


def _integer(op: Op, found: list[int | Tile | None]) -> int | None:
    """The result of integer arithmetic whose operands are known."""
    if op.kind == "constant":
        literal = re.match(r"arith\.constant (-?\d+|true|false)\b(?!\.)", op.text)
        return None if literal is None else _LITERALS[literal[1]] if literal[1].isalpha() else int(literal[1])
    if not found or not all(isinstance(value, int) for value in found):
        return None
    numbers = [value for value in found if isinstance(value, int)]
    if op.kind == "select":
        return numbers[1] if numbers[0] else numbers[2]
    if op.kind == "cmpi":
        return int(_COMPARISONS[re.split(r"[ ,]+", op.text)[1][-2:]](numbers[0], numbers[1]))
    if op.kind in ("extsi", "extui", "trunci"):
        return numbers[0]
    return _INTEGERS[op.kind](numbers[0], numbers[1]) if op.kind in _INTEGERS else None


def follow(ttgir: str) -> Follower:
    """Follows a kernel through the text of its stage."""
    follower = Follower()
    follower.follow(parse(ttgir).body)
    return follower
