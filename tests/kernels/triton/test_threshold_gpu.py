"""Threshold primitives on a GPU: training sizes, equal bits from run to run, no synchronisation with the device."""

import pytest
import torch

from tests.kernels.triton.test_gpu import ROUNDED, SUM, normal, twice
from tide_kernels import reference, triton
from tide_kernels.testing import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

BANDWIDTH = 0.3


def thresholds(rows, n_latents, level, by_latent):
    if not by_latent:
        return torch.tensor(level, device="cuda").expand(rows, n_latents)
    return (level + normal(rows, n_latents, seed=9, size=0.2)).float()


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("level", [1.7, 3.0], ids=["4.5 %", "1 of 1000"])
@pytest.mark.parametrize("groups", [0, 1, 16], ids=["one number", "by latent", "by group and latent"])
@pytest.mark.parametrize("n_latents", [4608, 18432, 73728, 18433])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_entries_above(n_latents, groups, level, dtype):
    rows = normal(256, n_latents, seed=1, dtype=dtype)
    rows[::7] = (rows[::7] * 2).round()
    rows[3, 5] = torch.nan
    threshold = thresholds(max(1, groups), n_latents, level, groups > 0)
    group = torch.arange(256, device="cuda") * 7 % groups if groups > 1 else None
    cut = torch.arange(256, device="cuda", dtype=torch.int32) * 300 % n_latents - 1
    for capacity in (n_latents // 8, n_latents // 1000):  # room for most rows, for some or none
        arguments = (rows, threshold, group, cut, capacity)
        found = twice(lambda arguments=arguments: triton.select_above(*arguments))
        for actual, expected in zip(found, reference.select_above(*arguments), strict=True):
            same(actual, expected)

    expected = torch.empty_like(rows)
    count = reference.keep_above(rows, threshold, group, cut, expected)

    def dense():
        out = rows.clone()
        return triton.keep_above(out, threshold, group, cut, out), out

    found = twice(dense)
    same(found[0], count)
    same(found[1], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_key_histogram(dtype):
    rows = normal(512, 18432, seed=1, dtype=dtype)
    rows[3, 5] = torch.nan
    parts = (
        [(16, 15, None), (15, 0, torch.tensor(0x3F80 * 2, device="cuda"))]
        if dtype == torch.float32
        else [(15, 0, None)]
    )
    for bits, shift, high in parts:

        def count(bits=bits, shift=shift, high=high):
            counts = torch.zeros(2**bits, dtype=torch.int64, device="cuda")
            triton.key_histogram_(rows, counts, shift, high)
            return counts

        expected = torch.zeros(2**bits, dtype=torch.int64, device="cuda")
        reference.key_histogram_(rows, expected, shift, high)
        assert torch.equal(twice(count), expected)


@pytest.mark.parametrize("groups", [0, 1, 16], ids=["one number", "by latent", "by group and latent"])
def test_sums_of_a_dense_chunk(groups):
    n_tokens, n_latents, d_model = 4096, 18432, 256
    threshold = thresholds(max(1, groups), n_latents, 1.7, groups > 0)
    group = torch.arange(n_tokens, device="cuda") * 7 % groups if groups > 1 else None
    grad, W = normal(n_tokens, d_model, seed=1), normal(n_latents, d_model, seed=2, size=0.06)
    pre = normal(n_tokens, n_latents, seed=3)
    z = torch.empty_like(pre)
    reference.keep_above(pre, threshold, group, None, z)

    def compute(primitive, *arguments):
        bias, fired = torch.zeros(n_latents, device="cuda"), torch.zeros(n_latents, dtype=torch.int64, device="cuda")
        sums, near = torch.zeros(threshold.shape, device="cuda"), torch.zeros(threshold.shape, device="cuda").long()
        pairs = (0.3, bias, fired, pre, threshold, group, BANDWIDTH, sums, near)
        return primitive(*arguments, *pairs), bias, fired, sums, near

    found = twice(lambda: compute(triton.near_gradient, grad, W, z))
    expected = compute(reference.near_gradient, grad, W, z)
    assert_close(found[0], expected[0], 4 * ROUNDED, "gradient")
    assert_close(found[1], found[0].double().sum(0), SUM, "b_enc")
    # The product is rounded to bfloat16 before it is summed up, in another order than the reference's.
    assert_close(found[3], expected[3], ROUNDED, "sums")
    assert torch.equal(found[2], expected[2])
    assert torch.equal(found[4], expected[4])


@pytest.mark.parametrize("groups", [0, 1, 16], ids=["one number", "by latent", "by group and latent"])
def test_sums_of_a_sparse_code(groups):
    n_tokens, n_latents = 4096, 18432
    threshold = thresholds(max(1, groups), n_latents, 3.0, groups > 0)
    group = torch.arange(n_tokens, device="cuda") * 7 % groups if groups > 1 else None
    pre = normal(n_tokens, n_latents, seed=3)
    pre[:, 5] += 3  # one latent is near its threshold on many tokens
    u, indices, _ = triton.select_above(pre, threshold - BANDWIDTH / 2, group, None, 128)
    grad = normal(n_tokens, 128, seed=4).float()

    def compute():
        sums, near = torch.zeros(threshold.shape, device="cuda"), torch.zeros(threshold.shape, device="cuda").long()
        layout = triton.transpose_selected(indices, n_latents)
        triton.add_near_places(grad, u, indices, layout, threshold, group, BANDWIDTH, sums, near)
        return sums, near

    found = twice(compute)
    bound = threshold if group is None else threshold[group]
    bound = bound.expand(n_tokens, -1).gather(1, indices.clamp(min=0).long())
    close = ((u.float() - bound).abs() < BANDWIDTH / 2) & (indices >= 0)
    place = indices.clamp(min=0).long() + (0 if group is None else (group * n_latents)[:, None])
    sums, near = (torch.zeros(threshold.numel(), dtype=torch.float64, device="cuda") for _ in range(2))
    sums.index_add_(0, place.flatten(), (grad.double() * close).flatten())
    near.index_add_(0, place.flatten(), close.double().flatten())
    assert_close(found[0], sums.view(threshold.shape), SUM, "sums")
    assert torch.equal(found[1], near.view(threshold.shape).long())
