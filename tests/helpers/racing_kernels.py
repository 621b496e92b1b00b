"""A kernel with a race between a product and the next tile's copy, and the same without it.

As a program, because kernels may be defined for the interpreter elsewhere: compiles both for sm_90 and prints, as
JSON, what the check of ahead-of-time compilation says about each.
"""

from __future__ import annotations

import json
from typing import Any

import triton
import triton.language as tl

from tide_kernels.triton.aot import examine
from tide_kernels.triton.specs import spec


@triton.jit
def _product_and_sums(a, b, out, sums, rows, SUMS: tl.constexpr, BLOCK: tl.constexpr):
    """``out = a^T b`` and, with SUMS, the column sums of a, for which each tile of it is needed in registers too."""
    o_row, o_column = tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, rows, BLOCK):
        place = (start + o_row)[:, None] * BLOCK + o_column[None, :]
        left = tl.load(a + place)
        acc = tl.dot(tl.trans(left), tl.load(b + place), acc)
        if SUMS:
            total += tl.sum(left.to(tl.float32), 0)
    tl.store(out + o_row[:, None] * BLOCK + o_column[None, :], acc)
    if SUMS:
        tl.store(sums + o_column, total)


def complaints(sums: bool) -> tuple[str, ...]:
    signature: dict[str, Any] = {"a": "*fp16", "b": "*fp16", "out": "*fp32", "sums": "*fp32", "rows": "i32"}
    config = {"BLOCK": 64, "num_warps": 4, "num_stages": 3}
    return examine(spec("planted", "sm_90", _product_and_sums, signature, {"SUMS": sums}, config, ("rows",))).complaints


if __name__ == "__main__":
    print(json.dumps({"racing": complaints(True), "mended": complaints(False)}))
