"""The reader of Triton's GPU dialect."""

from tide_kernels.triton import ttgir

TEXT = """
#loc = loc("file.py":1:0)
module {
  tt.func public @kernel(%x: i32 loc("x"(#loc))) {
    %c-1_i32 = arith.constant -1 : i32 loc(#loc)
    %0:2 = scf.for %i = %x to %x step %x iter_args(%a = %c-1_i32, %b = %x) -> (i32, i32) : i32 {
      %1 = arith.addi %a, %b : i32 loc(callsite(#loc at #loc))
      %2 = scf.if %1 -> (i32) {
        %3 = arith.muli %1, %1 : i32
        scf.yield %3 : i32
      } else {
        %3 = arith.subi %1, %1 : i32
        scf.yield %3 : i32
      }
      scf.yield %2, %1 : i32, i32
    }
    %1 = "tt.reduce"(%0#1) <{axis = 0 : i32}> ({
    ^bb0(%p: i32, %q: i32):
      tt.reduce.return %p : i32
    }) : (i32) -> i32
    tt.return
  }
}
"""


def test_operations_and_their_operands():
    (module,) = ttgir.parse(TEXT).body
    (function,) = module.body
    constant, loop, reduce, _ = function.body
    assert [op.kind for op in function.body] == ["constant", "for", "reduce", "return"]
    assert loop.results == 2
    assert loop.initial[0] == ttgir.Value(constant)
    assert reduce.operands[0] == ttgir.Value(loop, 1)


def test_regions_have_their_own_names():
    loop = ttgir.parse(TEXT).body[0].body[0].body[1]
    add, condition, _ = loop.body
    assert add.operands == [ttgir.Value(loop, 0, inside=True), ttgir.Value(loop, 1, inside=True)]
    product, first, difference, second = condition.body
    assert first.operands == [ttgir.Value(product)]
    assert second.operands == [ttgir.Value(difference)]
    assert loop.final == [ttgir.Value(condition), ttgir.Value(add)]
    assert (loop.loops, add.loops, product.loops) == (0, 1, 1)
