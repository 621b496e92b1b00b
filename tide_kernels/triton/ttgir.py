"""Shared-memory buffers of matrix products, read from Triton's GPU dialect (the stage "ttgir" of a compiled kernel).

An asynchronous product reads its operands from shared memory after the instruction that starts it, while the next
tiles are copied. A loop therefore needs one buffer of an operand more than there are products in flight when it is
overwritten. Triton (3.6 and 3.7) does not guarantee that: it gives a tile that is also used in registers a single
buffer, leaves the product in flight, and copies the next tile over what the product still reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_NAME = r"%[\w$.]+(?:-[\w$.]+)*"
_LOCATION = re.compile(r"\s*loc\([^()]*(?:\([^()]*\)[^()]*)*\)$")
_RESULTS = re.compile(rf"^({_NAME}(?::\d+)?(?:, {_NAME}(?::\d+)?)*) = (.*)$")
_ITERATED = re.compile(rf"({_NAME}) = ({_NAME}(?:#\d+)?)")
_LOOPS = ("for", "while")
_VIEWS = ("memdesc_index", "memdesc_trans", "memdesc_reshape", "memdesc_subslice", "memdesc_reinterpret")
_FROM_BUFFER = ("local_load", "trans", "convert_layout", "fp_to_fp", "reshape", "extf", "truncf", "bitcast")
_PRODUCTS = ("warp_group_dot", "tc_gen5_mma", "dot")
_READS = (*_PRODUCTS, *_VIEWS, *_LOOPS, "local_load", "warp_group_dot_wait", "wait_barrier", "local_dealloc", "yield")
_SIDES = ("left", "right")
_ROUNDS = 8  # of a loop that are followed: more than there are buffers


@dataclass(eq=False)
class Op:
    """An operation with its operands resolved to the operations that made them."""

    kind: str  # without its dialect: "local_alloc", "for", ...
    text: str
    operands: list[Value]
    loops: tuple[Op, ...]  # around it, the outermost first
    initial: list[Value] = field(default_factory=list)  # of a loop: what the values that it carries start as
    final: list[Value] = field(default_factory=list)  # of a loop: what they become in each round


@dataclass(frozen=True)
class Value:
    """A result of an operation; ``op`` is None for an argument of a block."""

    op: Op | None
    place: int = 0


def operations(ttgir: str) -> list[Op]:
    """All operations in their order."""
    found: list[Op] = []
    # Names are unique only among the regions around them. Each region: its names, and the loop it belongs to.
    regions: list[tuple[dict[str, Value], Op | None]] = [({}, None)]
    for line in ttgir.splitlines():
        text = _LOCATION.sub("", line.strip())
        if text.startswith("}") and len(regions) > 1:
            _, loop = regions.pop()
            if text.endswith("{"):  # "} else {" and "} do {"
                regions.append(({}, loop))
            continue
        if not text or text.startswith(("#", "//", "^", "{-#")):
            continue
        op = _operation(text, regions)
        found.append(op)
        if op.kind == "yield" and (loop := regions[-1][1]) is not None:
            loop.final = op.operands
        if text.endswith("{"):
            regions.append((_carried(text, op, regions), op if op.kind in _LOOPS else None))
    return found


def _operation(text: str, regions: list[tuple[dict[str, Value], Op | None]]) -> Op:
    results = _RESULTS.match(text)
    names, body = (results[1], results[2]) if results else ("", text)
    loops = tuple(loop for _, loop in regions if loop is not None)
    kind = re.split(r"[\s(<]", body, maxsplit=1)[0].strip('"').rsplit(".", 1)[-1]
    operands = [_value(name, regions) for name in re.findall(rf"{_NAME}(?:#\d+)?", body)]
    op = Op(kind, body, operands, loops)
    place = 0
    for name in filter(None, names.split(", ")):
        name, _, count = name.partition(":")
        for i in range(int(count or 1)):
            regions[-1][0][f"{name}#{i}"] = Value(op, place)
            place += 1
    return op


def _carried(text: str, op: Op, regions: list[tuple[dict[str, Value], Op | None]]) -> dict[str, Value]:
    """The values that a loop carries, by the names that they have inside, as what they start as."""
    names = {}
    if "iter_args(" in text:
        for inside, start in _ITERATED.findall(text.split("iter_args(", 1)[1]):
            names[f"{inside}#0"] = _value(start, regions)
            op.initial.append(names[f"{inside}#0"])
    return names


def _value(name: str, regions: list[tuple[dict[str, Value], Op | None]]) -> Value:
    full = name if "#" in name else f"{name}#0"
    return next((names[full] for names, _ in reversed(regions) if full in names), Value(None))


def _allocation(value: Value, through: tuple[str, ...] = _VIEWS) -> Op | None:
    """The shared memory that a value is a view of; None if it is a view of none."""
    while (op := value.op) is not None and op.kind != "local_alloc":
        if op.kind == "for" and value.place < len(op.initial):
            value = op.initial[value.place]
        elif op.kind == "warp_group_dot_wait" and value.place < len(op.operands):
            value = op.operands[value.place]
        elif op.kind in through and op.operands:
            value = op.operands[0]
        else:
            return None
    return op


def _depth(allocation: Op) -> int:
    """How many tiles of two dimensions an allocation has room for."""
    shape = re.search(r"!ttg\.memdesc<((?:\d+x)+)", allocation.text.rsplit("->", 1)[-1])
    sizes = shape[1].rstrip("x").split("x") if shape else []
    return int(sizes[0]) if len(sizes) > 2 else 1


def buffers(ttgir: str) -> list[tuple[int, ...]]:
    """For each product of the innermost loops that hold one (without a loop: for each product), the number of buffers
    of its left and its right operand; 0 for one that never was in shared memory."""
    found = [op for op in operations(ttgir) if op.kind in _PRODUCTS]
    deepest = max((len(op.loops) for op in found), default=0)
    return [tuple(_buffers_of(value) for value in op.operands[:2]) for op in found if len(op.loops) == deepest]


def _buffers_of(operand: Value) -> int:
    allocation = _allocation(operand, _VIEWS + _FROM_BUFFER)
    return 0 if allocation is None else _depth(allocation)


def races(ttgir: str) -> Iterator[str]:
    """The operands of asynchronous products that are overwritten while a product may still read them."""
    ops, found = operations(ttgir), set[str]()
    for loop in (op for op in ops if op.kind in _LOOPS):
        found |= set(_races_in([op for op in ops if loop in op.loops]))
    yield from sorted(found)
    for op in ops:
        types = op.text.rsplit(" : ", 1)[-1].split(" * ")
        if op.kind == "warp_group_dot" and _is_asynchronous(op) and op.loops:
            for side, value, kind in zip(_SIDES, op.operands, types, strict=False):
                if kind.startswith("!ttg.memdesc") and _allocation(value) is None:
                    yield f"the buffer of a product's {side} operand cannot be found: {op.text[:80]}"


def _races_in(ops: list[Op]) -> Iterator[str]:
    """Follows some rounds of a loop. Products complete in their order, when they are waited for."""
    flying: list[tuple[int, Op]] = []
    for i in range(_ROUNDS):
        for op in ops:
            if _is_asynchronous(op):
                flying.append((i, op))
            elif op.kind == "warp_group_dot_wait":
                left = re.search(r"pendings = (\d+)", op.text)
                flying = flying[max(0, len(flying) - int(left[1] if left else 0)) :]
            elif op.kind == "wait_barrier":
                flying = _after_barrier(flying, i, op.operands[0])
            for target in _overwrites(op):
                readers = {round_: side for round_, product in flying for side in _sides_in(product, target)}
                if len(readers) >= _depth(target):
                    depth, side = _depth(target), readers[min(readers)]
                    yield f"{depth} buffer(s) of a product's {side} operand, overwritten with {len(readers)} in flight"


def _is_asynchronous(op: Op) -> bool:
    return (op.kind == "warp_group_dot" and "isAsync = true" in op.text) or (
        op.kind == "tc_gen5_mma" and "is_async" in op.text
    )


def _after_barrier(flying: list[tuple[int, Op]], i: int, barrier: Value) -> list[tuple[int, Op]]:
    """What is in flight after a wait for a barrier that products arrive at: nothing up to the product of this round if
    it arrives there, else nothing of earlier rounds."""
    if barrier.op is not None and barrier.op.kind == "for":
        barrier = barrier.op.final[barrier.place]
    own = _allocation(barrier)
    arrives = [own is not None and own in map(_allocation, product.operands[2:]) for _, product in flying]
    if not any(arrives):
        return flying
    now = [place for place, (round_, product) in enumerate(flying) if round_ == i and barrier in product.operands]
    return flying[now[-1] + 1 :] if now else [(round_, product) for round_, product in flying if round_ == i]


def _overwrites(op: Op) -> list[Op]:
    if op.kind == "local_alloc":
        return [op] if op.operands else []
    targets = [] if op.kind in _READS else [_allocation(value) for value in op.operands]
    return [target for target in targets if target is not None]


def _sides_in(product: Op, buffer: Op) -> list[str]:
    return [side for side, value in zip(_SIDES, product.operands, strict=False) if _allocation(value) is buffer]
