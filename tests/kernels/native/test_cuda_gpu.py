"""On a GPU: the compiled `select` and `keep_top_` against the reference, to the bit."""

import pytest
import torch

from tests.helpers.codes import dense
from tide_kernels import native, reference
from tide_kernels.testing import adversarial_rows, poisoned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(native.cuda_unavailable() is not None, reason=f"compiled CUDA: {native.cuda_unavailable()}"),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [
    pytest.param(1, 1, id="one latent"),
    pytest.param(8, 8, id="one load, all of it"),
    pytest.param(97, 5, id="odd n: rows that are not aligned"),
    pytest.param(1000, 999, id="k just below n: fewer positives than k"),
    pytest.param(4608, 230, id="n=4608"),
    pytest.param(18432, 922, id="n=18432 at 5 %"),
    pytest.param(18432, 32, id="n=18432, k=32"),
    pytest.param(18440, 18440, id="all of a row"),
    pytest.param(49152, 2458, id="the longest row with six chunks a thread"),
    pytest.param(49160, 64, id="one load more"),
    pytest.param(73728, 3686, id="n=73728 at 5 %"),
    pytest.param(73736, 3686, id="too long for registers"),
    pytest.param(131072, 100, id="too long for shared memory as float32"),
]


def same(actual, expected):
    nan = expected.isnan()
    return torch.equal(actual.isnan(), nan) and torch.equal(actual[~nan], expected[~nan])


def kept(pre, k):
    return dense(*reference.select(pre, k), pre.shape[1])


def check(pre, k):
    """Twice, so that a run that depends on the order of threads shows."""
    expected_values, expected_indices = reference.select(pre.cpu(), k)
    for _ in range(2):
        values, indices = native.select(pre, k)
        assert torch.equal(indices.cpu(), expected_indices)
        assert same(values.cpu(), expected_values)
        z = pre.clone()
        native.keep_top_(z, k)
        assert same(z.cpu(), kept(pre.cpu(), k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_latents", "k"), SHAPES)
def test_adversarial_rows(n_latents, k, dtype):
    check(torch.stack(list(adversarial_rows(n_latents, dtype).values())).cuda(), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_latents", "k"), [(512, 25), (4608, 230), (18432, 922)])
def test_many_rows_of_which_a_block_takes_several(n_latents, k, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    pre = torch.randn(9 * 1024 + 5, n_latents, generator=generator, device="cuda")
    pre *= torch.rand(len(pre), 1, generator=generator, device="cuda") * 4  # thresholds differ from row to row
    pre = pre.to(dtype)
    values, indices = native.select(pre, k)
    z = pre.clone()
    native.keep_top_(z, k)
    assert torch.equal(dense(values, indices, n_latents), z)
    assert bool((indices.diff(dim=1) > 0).all())
    rows = torch.arange(0, len(pre), 257)
    expected_values, expected_indices = reference.select(pre[rows.cuda()].cpu(), k)
    assert torch.equal(indices[rows.cuda()].cpu(), expected_indices)
    assert torch.equal(values[rows.cuda()].cpu(), expected_values)
    # Exactly the k largest of every row, by count: none that is left out is larger than one that is kept.
    least = values.amin(1, keepdim=True)
    assert bool((torch.where(z > 0, -torch.inf, pre.float()).amax(1, keepdim=True) <= least.float()).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("pitch", [4608, 4616, 4611])
def test_rows_that_lie_apart_and_off_the_alignment(dtype, offset, pitch):
    memory = poisoned((20 * pitch + offset,), dtype, "cuda")
    pre = memory[offset:].view(20, pitch)[:, :4600]
    pre.copy_(torch.randn(20, 4600, generator=torch.Generator().manual_seed(1)))
    expected_values, expected_indices = reference.select(pre.cpu(), 200)
    values, indices = native.select(pre, 200)
    assert torch.equal(indices.cpu(), expected_indices)
    assert torch.equal(values.cpu(), expected_values)
    expected = kept(pre.cpu(), 200)
    native.keep_top_(pre, 200)
    assert torch.equal(pre.cpu(), expected)
    assert bool(memory[offset:].view(20, pitch)[:, 4600:].isnan().all())  # nothing beside the rows is touched


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_that_lie_apart(dtype):
    pre = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).to(dtype).cuda().T
    values, indices = native.select(pre, 20)
    expected_values, expected_indices = reference.select(pre.cpu(), 20)
    assert torch.equal(indices.cpu(), expected_indices)
    assert torch.equal(values.cpu(), expected_values)
    with pytest.raises(RuntimeError, match="do not lie side by side"):
        native.keep_top_(pre, 20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows(dtype):
    pre = torch.empty(0, 64, dtype=dtype, device="cuda")
    values, indices = native.select(pre, 3)
    assert values.shape == indices.shape == (0, 3)
    native.keep_top_(pre, 3)


@pytest.mark.parametrize("k", [0, 65])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(RuntimeError, match="k is"):
        native.select(torch.ones(2, 64, device="cuda"), k)


def test_it_never_waits_for_the_device_and_can_be_captured():
    pre = torch.randn(64, 4608, device="cuda").bfloat16()
    native.keep_top_(pre.clone(), 230)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        native.select(pre, 230)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph, z = torch.cuda.CUDAGraph(), pre.clone()
    with torch.cuda.graph(graph):
        native.keep_top_(z, 230)
    z.copy_(pre)
    graph.replay()
    assert torch.equal(z.cpu(), kept(pre.cpu(), 230))
