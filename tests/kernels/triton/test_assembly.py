"""Loops, barriers and products of assembly."""

from tide_kernels.triton import assembly

PTX = """
\tbar.sync \t0;
$L__BB0_1:
\tbar.sync \t0;
$L__BB0_2:
\twgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, %p1, 1, 1, 0, 0;
\t@%p2 bra \t$L__BB0_3;
\tbar.sync \t0;
$L__BB0_3:
\tbar.warp.sync \t-1;
\tbarrier.sync \t0;
\t@%p3 bra \t$L__BB0_2;
$L__BB0_4:
\tadd.s32 %r1, %r2, %r3;
\tadd.s32 %r1, %r2, %r3;
\tadd.s32 %r1, %r2, %r3;
\tadd.s32 %r1, %r2, %r3;
\tadd.s32 %r1, %r2, %r3;
\tadd.s32 %r1, %r2, %r3;
\tadd.s32 %r1, %r2, %r3;
\tadd.s32 %r1, %r2, %r3;
\tbra.uni \t$L__BB0_4;
\tbra \t$L__BB0_1;
\tbra \t$L__BB0_5;
$L__BB0_5:
\tbar.sync \t0;
"""
AMDGCN = """
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\tv_mfma_f32_32x32x8_bf16_1k v[0:15], v[80:81], v[82:83], v[0:15]
\ts_barrier
\ts_cbranch_scc1 .LBB0_1
\ts_barrier
"""


def test_the_hot_loop_holds_the_product():
    assert assembly.read(PTX) == assembly.Loops(barriers=2, looped_barriers=3, products=("wgmma m64n128k16",))


def test_without_products_the_hot_loop_is_the_longest():
    assert assembly.read(PTX.replace("wgmma", "add")).barriers == 0


def test_without_loops_there_is_no_hot_one():
    assert assembly.read("bar.sync 0;") == assembly.Loops()


def test_assembly_of_amd():
    assert assembly.read(AMDGCN) == assembly.Loops(1, 1, ("mfma 32x32x8",))


def test_names_of_products():
    lines = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {};\ntcgen05.mma.cta_group::1.kind::f16 [ %r1 ], %rd2;"
    assert assembly.read(lines).products == ("mma m16n8k16", "tcgen05 kind::f16")
