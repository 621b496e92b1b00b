"""Operands that are overwritten while a product reads them, in texts and in a compiled kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tide_kernels.triton import buffers

ROOT = Path(__file__).parents[3]

# The loop of a pipelined product on Hopper: two buffers of the left operand, DEPTH of the right one. The product of a
# round reads the buffer after %read, the copy goes to the one after %write.
HOPPER = """
module attributes {"ttg.num-warps" = 4 : i32} {
  tt.func public @kernel(%a: !tt.ptr<f16> loc("a"(#loc)), %rows: i32 loc("rows"(#loc))) attributes {noinline = false} {
    %c-1_i32 = arith.constant -1 : i32 loc(#loc)
    %c0_i32 = arith.constant 0 : i32 loc(#loc)
    %c1_i32 = arith.constant 1 : i32 loc(#loc)
    %depth = arith.constant DEPTH : i32 loc(#loc)
    %cst = arith.constant dense<0.000000e+00> : tensor<64x64xf32, #mma> loc(#loc)
    %left = ttg.local_alloc : () -> !ttg.memdesc<64x64xf16, #shared, #smem, mutable> loc(#loc)
    %right = ttg.local_alloc : () -> !ttg.memdesc<DEPTHx64x64xf16, #shared, #smem, mutable> loc(#loc2)
    %acc:3 = scf.for %i = %c0_i32 to %rows step %c1_i32 iter_args(%sum = %cst, %read = %c-1_i32, %write = WRITE) -> (tensor<64x64xf32, #mma>, i32, i32)  : i32 {
      %0 = arith.addi %read, %c1_i32 : i32 loc(#loc)
      %1 = arith.cmpi sge, %0, %depth : i32 loc(#loc)
      %2 = arith.select %1, %c0_i32, %0 : i32 loc(#loc)
      %3 = arith.addi %write, %c1_i32 : i32 loc(#loc)
      %4 = arith.cmpi sge, %3, %depth : i32 loc(#loc)
      %5 = arith.select %4, %c0_i32, %3 : i32 loc(#loc)
      %6 = ttg.memdesc_index %right[%2] : !ttg.memdesc<DEPTHx64x64xf16, #shared> -> !ttg.memdesc<64x64xf16, #shared> loc(#loc)
      %7 = ttng.warp_group_dot %left, %6, %sum {isAsync = true} : !ttg.memdesc<64x64xf16, #shared> * !ttg.memdesc<64x64xf16, #shared> -> tensor<64x64xf32, #mma> loc(#loc)
      %8:3 = ttng.warp_group_dot_wait %7, %left, %6 {pendings = PENDING : i32} : tensor<64x64xf32, #mma>, !ttg.memdesc<64x64xf16, #shared>, !ttg.memdesc<64x64xf16, #shared> loc(#loc)
      %9 = ttg.memdesc_index %right[%5] : !ttg.memdesc<DEPTHx64x64xf16, #shared> -> !ttg.memdesc<64x64xf16, #shared> loc(#loc)
      %10 = ttg.async_copy_global_to_local %a, %9 mask %rows : tensor<64x64x!tt.ptr<f16>, #blocked> -> <64x64xf16, #shared> loc(#loc)
      scf.yield %8#0, %2, %5 : tensor<64x64xf32, #mma>, i32, i32 loc(#loc)
    } loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
"""  # noqa: E501

# The same on Blackwell: products arrive at two barriers in turn, and the wait is for the one of the round before.
BLACKWELL = """
module {
  tt.func public @kernel(%a: !tt.ptr<f16>, %rows: i32) {
    %c0_i32 = arith.constant 0 : i32
    %c1_i32 = arith.constant 1 : i32
    %depth = arith.constant DEPTH : i32
    %true = arith.constant true
    %bars = ttg.local_alloc : () -> !ttg.memdesc<2x1xi64, #shared, #smem, mutable>
    %left = ttg.local_alloc : () -> !ttg.memdesc<64x64xf16, #shared, #smem, mutable>
    %right = ttg.local_alloc : () -> !ttg.memdesc<DEPTHx64x64xf16, #shared, #smem, mutable>
    %first = ttg.memdesc_index %bars[%c1_i32] : !ttg.memdesc<2x1xi64, #shared> -> !ttg.memdesc<1xi64, #shared>
    %done:3 = scf.for %i = %c0_i32 to %rows step %c1_i32 iter_args(%read = %c0_i32, %which = %c0_i32, %before = %first) -> (i32, i32, !ttg.memdesc<1xi64, #shared>)  : i32 {
      %0 = arith.addi %read, %c1_i32 : i32
      %1 = arith.remsi %0, %depth : i32
      %2 = ttg.memdesc_index %right[%read] : !ttg.memdesc<DEPTHx64x64xf16, #shared> -> !ttg.memdesc<64x64xf16, #shared>
      %3 = ttg.memdesc_index %bars[%which] : !ttg.memdesc<2x1xi64, #shared> -> !ttg.memdesc<1xi64, #shared>
      ttng.tc_gen5_mma %left, %2, %true, %true, %true, %3[%true] {is_async} : !ttg.memdesc<64x64xf16, #shared>, !ttg.memdesc<64x64xf16, #shared>
      ttng.wait_barrier %before, %which : !ttg.memdesc<1xi64, #shared>
      %4 = ttg.memdesc_index %right[%1] : !ttg.memdesc<DEPTHx64x64xf16, #shared> -> !ttg.memdesc<64x64xf16, #shared>
      %5 = ttg.async_copy_global_to_local %a, %4 : tensor<64x64x!tt.ptr<f16>, #blocked> -> <64x64xf16, #shared>
      %6 = arith.xori %which, %c1_i32 : i32
      scf.yield %1, %6, %3 : i32, i32, !ttg.memdesc<1xi64, #shared>
    }
    tt.return
  }
}
"""  # noqa: E501


def hopper(depth: int, pending: int, write: str) -> buffers.Follower:
    text = HOPPER.replace("DEPTH", str(depth)).replace("PENDING", str(pending)).replace("WRITE", write)
    return buffers.follow(text)


@pytest.mark.parametrize(
    ("depth", "pending", "write"),
    [
        (1, 1, "%c-1_i32"),  # the only buffer, while a product reads it
        (2, 1, "%c1_i32"),  # two buffers, but the copy goes to the one of this round
        (3, 2, "%c1_i32"),  # two products in flight: the copy goes to the one of the round before
    ],
)
def test_a_copy_over_a_buffer_in_use_is_found(depth, pending, write):
    (race,) = hopper(depth, pending, write).races
    assert race.startswith("copies a tile over a product's right operand that it may still read")


@pytest.mark.parametrize(
    ("depth", "pending", "write"),
    [(1, 0, "%c-1_i32"), (2, 1, "%c0_i32"), (3, 1, "%c1_i32"), (4, 2, "%c1_i32")],
)
def test_a_copy_to_a_free_buffer_passes(depth, pending, write):
    follower = hopper(depth, pending, write)
    assert follower.races == set()
    assert follower.buffers() == ((1, depth),)


def test_a_buffer_whose_number_is_unknown_counts_as_any():
    assert hopper(1, 1, "%rows").races
    assert not hopper(2, 1, "%rows").races


def test_a_copy_that_cannot_be_followed_is_said():
    text = HOPPER.replace("DEPTH", "3").replace("PENDING", "1").replace("WRITE", "%c1_i32")
    (race,) = buffers.follow(text.replace("copy_global_to_local %a, %9", "copy_global_to_local %a, %b")).races
    assert race.startswith("cannot tell which buffer is written by ttg.async_copy_global_to_local")


@pytest.mark.parametrize(("depth", "racing"), [(1, True), (2, False)])
def test_products_that_arrive_at_barriers(depth, racing):
    assert bool(buffers.follow(BLACKWELL.replace("DEPTH", str(depth))).races) == racing


def test_a_wait_for_another_barrier_does_not_help():
    text = BLACKWELL.replace("DEPTH", "2").replace("ttng.wait_barrier %before", "ttng.wait_barrier %left")
    assert buffers.follow(text).races


def test_compiled_kernels():
    """Triton 3.6 and 3.7 compile the first with a race. A version that does not can drop this half of the test."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.helpers.racing_kernels"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert [race.split(" that ")[0] for race in found["racing"]] == ["copies a tile over a product's left operand"]
    assert found["mended"] == []
