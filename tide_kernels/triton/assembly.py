"""What a kernel's assembly tells without a GPU: its loops, their barriers, and the instructions of its products.

It is read from PTX and, for AMD's GPUs, from the assembly of the compiler's last stage. Loops are found by branches
back: from a label to the last branch to it. The hot loop is the one of the innermost loops that holds the most
instructions of matrix products, and among equals the longest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\$?\.?L\w+):")
_BRANCH = re.compile(r"\b(?:bra|s_branch|s_cbranch_\w+)(?:\.uni)?\s+(\$?\.?L\w+)")
_BARRIER = re.compile(r"\b(?:bar\.sync|barrier\.sync|s_barrier)\b")
_PRODUCT = re.compile(
    r"\b(?:(wgmma)\.mma_async\.sync\.aligned|(mma)\.sync\.aligned|(tcgen05)\.mma|(v_mfma_f32)_)[.]?([\w:.]*)"
)
_SHAPE = re.compile(r"m\d+n\d+k\d+|kind::\w+|\d+x\d+x\d+")


@dataclass(frozen=True)
class Loops:
    """Counts over the text of a kernel, not over its execution."""

    barriers: int = 0  # in the hot loop
    looped_barriers: int = 0  # in all loops
    products: tuple[str, ...] = ()  # the instructions of matrix products with their shapes, each once


def read(assembly: str) -> Loops:
    """What the assembly of a kernel tells."""
    lines = [line.strip() for line in assembly.splitlines()]
    loops = _loops(lines)
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b for c, d in loops if (c, d) != (a, b))]
    hot = max(inner, key=lambda loop: _weight(lines[loop[0] : loop[1] + 1]), default=None)
    looped = {i for a, b in loops for i in range(a, b + 1)}
    shapes = {_product(found) for line in lines for found in _PRODUCT.finditer(line)}
    return Loops(
        0 if hot is None else sum(map(_barriers, lines[hot[0] : hot[1] + 1])),
        sum(_barriers(lines[i]) for i in looped),
        tuple(sorted(shapes)),
    )


def _loops(lines: list[str]) -> list[tuple[int, int]]:
    """The lines of each loop, from its label to the last branch back to it."""
    labels = {found[1]: i for i, line in enumerate(lines) if (found := _LABEL.match(line))}
    ends: dict[int, int] = {}
    for i, line in enumerate(lines):
        found = _BRANCH.search(line)
        if found and (begin := labels.get(found[1], len(lines))) <= i:
            ends[begin] = i
    return sorted(ends.items())


def _weight(lines: list[str]) -> tuple[int, int]:
    return sum(1 for line in lines if _PRODUCT.search(line)), len(lines)


def _barriers(line: str) -> int:
    return len(_BARRIER.findall(line))


def _product(found: re.Match[str]) -> str:
    """``wgmma m64n128k16``, for one."""
    name = next(name for name in found.groups()[:4] if name)
    shape = _SHAPE.search(found[5])
    return f"{name.removeprefix('v_').removesuffix('_f32')} {shape[0] if shape else found[5]}"
