"""The sums for thresholds' gradients against the reference in float64."""

import importlib

import pytest
import torch

from tests.helpers.tolerances import PRODUCTS
from tide_kernels import reference, thresholds, triton
from tide_kernels.testing import assert_close

DTYPES = [torch.float16, torch.float32]
BANDWIDTH = 0.5

#: The product is rounded before the pairs' term is added, and the result once more.
TOLERANCE = {dtype: 2 * allowed for dtype, allowed in PRODUCTS.items()}


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch):
    for name in ("layout", "transpose", "threshold_gradient"):
        monkeypatch.setattr(importlib.import_module(f"tide_kernels.triton.{name}"), "PIECE", 16)


@pytest.fixture(params=["one number", "one of each latent", "one number a group", "a row a group"])
def bounds(request, device, generator):
    """Makes thresholds in quarters, so that some entries in quarters are half a bandwidth away, and groups of tokens;
    of five groups, one has no token."""

    def make(n_tokens, n_latents):
        groups = 5 if "group" in request.param else 1
        width = 1 if "number" in request.param else n_latents
        threshold = torch.randint(-1, 4, (groups, width), generator=generator).float() / 4
        group = torch.randint(4, (n_tokens,), generator=generator).to(device) if groups > 1 else None
        return threshold.expand(groups, n_latents).to(device), group

    return make


def quarters(*shape, generator, device, dtype):
    return (torch.randint(-4, 8, shape, generator=generator) / 4).to(device=device, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_tokens", [40, 6], ids=["a popular latent has several pieces", "few tokens"])
def test_add_near_places(n_tokens, dtype, bounds, normal, device, generator):
    n_latents, capacity = 17, 4
    indices = torch.rand(n_tokens, n_latents, generator=generator)
    indices[:, 3] = 1  # popular
    indices = indices.topk(capacity).indices.sort().values.int()
    indices[torch.rand(n_tokens, capacity, generator=generator) < 0.2] = -1
    indices = indices.to(device)
    u = quarters(n_tokens, capacity, generator=generator, device=device, dtype=dtype)
    grad = normal(n_tokens, capacity)
    grad[indices < 0], u[indices < 0] = torch.nan, 0
    u[0, 1] = torch.nan
    threshold, group = bounds(n_tokens, n_latents)
    sums, near = normal(len(threshold), n_latents), torch.randint(5, (len(threshold), n_latents)).to(device)
    before, counted = sums.double(), near.clone()

    layout = triton.transpose(indices, n_latents)
    triton.add_near_places(grad, u, indices, layout, threshold, group, BANDWIDTH, sums, near)

    dense = [torch.zeros(n_tokens, n_latents + 1, dtype=torch.float64, device=device) for _ in range(2)]
    dense[1].fill_(torch.inf)  # far from every threshold
    places = torch.where(indices < 0, n_latents, indices).long()
    dz, pre = (z.scatter_(1, places, v.double())[:, :-1] for z, v in zip(dense, (grad, u), strict=True))
    thresholds.add_near(dz, pre, threshold.double(), group, BANDWIDTH, before, counted)
    assert_close(sums, before, 1e-5, "sums")
    assert torch.equal(near, counted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pair_factor", [0.0, 0.3], ids=["plain", "pairs"])
@pytest.mark.parametrize(
    ("n_tokens", "n_latents", "d_model"),
    [pytest.param(2, 1, 1, id="one latent of width 1"), pytest.param(38, 83, 20, id="several pieces and blocks")],
)
def test_near_gradient(n_tokens, n_latents, d_model, pair_factor, dtype, bounds, normal, device, generator):
    threshold, group = bounds(n_tokens, n_latents)
    pre = quarters(n_tokens, n_latents, generator=generator, device=device, dtype=dtype)
    z = torch.zeros_like(pre)
    reference.keep_above(pre, threshold, group, None, z)
    grad, W = normal(n_tokens, d_model, dtype=dtype), normal(n_latents, d_model, dtype=dtype)
    rows = len(threshold)
    found = [normal(n_latents), torch.arange(n_latents, device=device)]
    found += [normal(rows, n_latents), torch.arange(rows * n_latents, device=device).view(rows, n_latents)]
    expected = [t.double() if t.is_floating_point() else t.clone() for t in found]

    def compute(primitive, grad, W, z, pre, threshold, results):
        bias, fired, sums, near = results
        options = (pair_factor, bias, fired, pre, threshold, group, BANDWIDTH, sums, near)
        return primitive(grad, W, z, *options)

    out = compute(triton.near_gradient, grad, W, z, pre, threshold, found)
    double = (t.double() for t in (grad, W, z, pre, threshold))
    exact = compute(reference.near_gradient, *double, expected)
    assert out.dtype == dtype
    assert_close(out, exact, TOLERANCE[dtype], "gradient")
    for name, actual, wanted in zip(("b_enc", "fired", "sums", "near"), found, expected, strict=True):
        if actual.is_floating_point():
            assert_close(actual, wanted, TOLERANCE[dtype], name)
        else:
            assert torch.equal(actual, wanted), name


def test_near_gradient_without_sums_of_the_encoder_and_with_nan(normal, device):
    pre, z = torch.ones(4, 20, device=device), torch.zeros(4, 20, device=device)
    pre[1, 7] = z[1, 7] = torch.nan
    sums, near = torch.zeros(1, 20, device=device), torch.zeros(1, 20, dtype=torch.int64, device=device)
    grad, W = normal(4, 3), normal(20, 3)
    out = triton.near_gradient(
        grad, W, z, 0.0, None, None, pre, torch.ones(1, 20, device=device), None, 0.1, sums, near
    )
    product = grad.double() @ W.double().T
    assert_close(out, product * (z != 0), 1e-5)
    assert torch.equal(near, (pre == 1).sum(0, keepdim=True))
    assert_close(sums, (product * (pre == 1)).sum(0, keepdim=True), 1e-5)


def test_a_value_of_0_passes_no_gradient_to_the_encoder(normal, device):
    values = torch.tensor([[2.0, 0.0], [0.0, 3.0]], device=device)
    indices = torch.tensor([[0, 1], [0, 1]], dtype=torch.int32, device=device)
    grad, x, W = normal(2, 6), normal(2, 6), normal(2, 6)
    W_dec, W_enc, b_enc = (
        torch.zeros(2, 6, device=device),
        torch.zeros(2, 6, device=device),
        torch.zeros(2, device=device),
    )
    layout = triton.transpose(indices, 2)
    slopes = triton.backward_latents(values, indices, layout, grad, x, W, None, W_dec, W_enc, b_enc)
    expected = grad.double() @ W.double().T
    assert_close(slopes, expected, 1e-5, "grad_values")
    active = expected * (values != 0)
    assert_close(W_enc, active.T @ x.double(), 1e-5, "W_enc")
    assert_close(b_enc, active.sum(0), 1e-5, "b_enc")
    assert_close(W_dec, values.double().T @ grad.double(), 1e-5, "W_dec")


def test_no_tokens(device):
    sums, near = torch.ones(1, 20, device=device), torch.ones(1, 20, dtype=torch.int64, device=device)
    empty, W, threshold = torch.empty(0, 20, device=device), torch.ones(20, 3, device=device), sums.clone()
    group = torch.zeros(0, dtype=torch.int64, device=device)
    for belongs in (None, group):
        arguments = (empty, threshold, belongs, 0.1, sums, near)
        assert triton.near_gradient(empty[:, :3], W, empty, 0.5, sums[0], None, *arguments).shape == (0, 20)
    indices = torch.empty(0, 4, dtype=torch.int32, device=device)
    layout = triton.transpose(indices, 20)
    triton.add_near_places(empty[:, :4], empty[:, :4], indices, layout, threshold, None, 0.1, sums, near)
    assert bool((sums == 1).all())
    assert bool((near == 1).all())
