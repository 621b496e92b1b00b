"""What training by thresholds needs besides the selection, as the reference or its formula has it."""

import pytest
import torch

from tests.kernels.native.test_above import DTYPES, normal
from tide_kernels import native, reference
from tide_kernels.testing import adversarial_rows, assert_close


def code(n_tokens, n_latents, k, seed=0):
    """Ascending indices, the last places of some tokens unused, and values, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(n_tokens, n_latents, generator=generator).argsort(1)[:, :k].sort(1).values.to(torch.int32)
    indices[::3, k - k // 4 :] = -1
    values = torch.randn(n_tokens, k, generator=generator)
    values[torch.rand(n_tokens, k, generator=generator) < 1 / 3] = 0
    return torch.where(indices < 0, 0, values), indices


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_latents", [1, 97, 70000])
def test_key_histogram(n_latents, dtype):
    pre = torch.stack(list(adversarial_rows(n_latents, dtype).values()))
    passes = [(0, 2**15, None)] if dtype == torch.bfloat16 else [(15, 2**16, None), (0, 2**15, 0x3F800000 >> 15)]
    for shift, size, high in passes:
        top = None if high is None else torch.tensor(high)
        expected = torch.arange(size)
        actual = expected.clone()
        for rows in (pre, pre[::2], pre.T):
            reference.key_histogram_(rows, expected, shift, top)
            native.key_histogram_(rows, actual, shift, top)
        assert torch.equal(actual, expected)
        assert not torch.equal(actual, torch.arange(size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_count_equal(dtype):
    pre = torch.stack(list(adversarial_rows(97, dtype).values()))
    for value in (0.0, -0.0, 1.0, -1.0, torch.inf, torch.nan):
        for rows in (pre, pre[:, 3:50], pre.T):
            number = torch.tensor(value, dtype=dtype)
            assert torch.equal(native.count_equal(rows, number), reference.count_equal(rows, number))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_tokens", "n_latents", "k"), [(40, 12, 9), (300, 900, 40)], ids=["few latents", "blocks"])
def test_a_place_of_value_0_passes_no_gradient_to_the_encoder(n_tokens, n_latents, k, dtype, biased):
    values, indices = code(n_tokens, n_latents, k)
    values = values.to(dtype)
    grad, x, W = normal(n_tokens, 50), normal(n_tokens, 50, seed=1).to(dtype), normal(n_latents, 50, seed=2).to(dtype)
    extra = normal(n_tokens, k, seed=3)
    gradients = [normal(n_latents, 50, seed=4), normal(n_latents, 50, seed=5)]
    gradients.append(normal(n_latents, seed=6) if biased else None)
    expected = [None if g is None else g.double() for g in gradients]
    grad_values = native.backward_latents(
        values, indices, native.transpose(indices, n_latents), grad, x, W, extra, *gradients
    )
    rounded = grad.to(dtype).double()  # as all operands of products; so is grad_values before its product
    used = indices >= 0
    rows = indices.clamp(min=0).long()
    slope = torch.where(used, (rounded.unsqueeze(1) * W[rows].double()).sum(2) + extra.double(), 0)
    assert_close(grad_values, slope, 1e-5)
    z = torch.zeros(n_tokens, n_latents, dtype=torch.float64).scatter_add_(1, rows, values.double() * used)
    passing = torch.where(values != 0, grad_values, 0)
    dz, dz_rounded = (torch.zeros_like(z).scatter_add_(1, rows, p.double()) for p in (passing, passing.to(dtype)))
    sums = [z.T @ rounded, dz_rounded.T @ x.double(), dz.sum(0)]
    for actual, start, more in zip(gradients, expected, sums, strict=True):
        if actual is not None:
            assert_close(actual, start + more, 1e-5)


def test_a_place_of_value_0_is_not_multiplied():
    """Neither by a weight in the decoder nor by a token in the encoder's gradient."""
    values, indices = torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([[0, 1], [0, 1]], dtype=torch.int32)
    x, W, layout = torch.ones(2, 8), torch.ones(2, 8), native.transpose(indices, 2)
    x[0] = torch.inf
    grad_W_enc, grad_b_enc = torch.zeros(2, 8), torch.zeros(2)
    native.backward_latents(values, indices, layout, torch.ones(2, 8), x, W, None, None, grad_W_enc, grad_b_enc)
    assert (grad_W_enc[0] == 8).all()
    assert grad_b_enc.tolist() == [8, 16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_leaves_out_values_of_0(dtype):
    for n_tokens, n_latents, k in ((300, 40, 13), (5, 300, 13)):  # packed weights, whole rows
        values, indices = code(n_tokens, n_latents, k)
        W = normal(n_latents, 70, seed=2).to(dtype)
        z = torch.zeros(n_tokens, n_latents, dtype=torch.float64)
        z.scatter_add_(1, indices.clamp(min=0).long(), torch.where(indices < 0, 0, values.double()))
        assert_close(native.gather(values, indices, W), z @ W.double(), 1e-5)
        again = native.gather(values.where(values != 0, 1.0), indices, W)
        assert not torch.equal(again, native.gather(values, indices, W))


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_near_places(dtype, groups):
    n_tokens, n_latents, k, bandwidth = 300, 90, 21, 0.7
    grad_values, indices = code(n_tokens, n_latents, k)
    u = normal(n_tokens, k, seed=1).to(dtype)
    threshold = 0.3 * normal(groups or 1, n_latents, seed=2)
    group = None if groups is None else torch.arange(n_tokens) % groups
    sums, near = normal(groups or 1, n_latents, seed=3), torch.arange((groups or 1) * n_latents).view(-1, n_latents)
    rows = torch.zeros(n_tokens, dtype=torch.long) if group is None else group
    place = torch.where(indices < 0, 0, rows.unsqueeze(1) * n_latents + indices)
    close = ((u.float() - threshold.flatten()[place]).abs() < bandwidth / 2) & (indices >= 0)
    expected = sums.double().flatten().scatter_add(0, place.flatten(), (grad_values.double() * close).flatten())
    count = near.flatten().scatter_add(0, place.flatten(), close.flatten().long())
    layout = native.transpose(indices, n_latents)
    native.add_near_places(grad_values, u, indices, layout, threshold, group, bandwidth, sums, near)
    assert_close(sums, expected.view_as(sums), 1e-5)
    assert torch.equal(near, count.view_as(near))
    assert close.any()


def test_bad_input_is_refused():
    pre = normal(3, 5)
    for wrong, message in (
        ((pre.double(), torch.zeros(8, dtype=torch.long), 0, None), "pre has a dtype that is not served"),
        ((pre, torch.zeros(8), 0, None), "counts have to be contiguous int64"),
        ((pre, torch.zeros(9, dtype=torch.long), 0, None), "counts are not a power of two"),
        ((pre, torch.zeros(8, dtype=torch.long), 0, torch.zeros(())), "high is not one int64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            native.key_histogram_(*wrong)
    with pytest.raises(RuntimeError, match="value is not one number of pre's dtype"):
        native.count_equal(pre, torch.tensor(1))
    values, indices = code(3, 5, 4)
    layout, sums = native.transpose(indices, 5), torch.zeros(1, 5)
    with pytest.raises(RuntimeError, match="near has to be contiguous int64 of 5 elements"):
        native.add_near_places(values, values, indices, layout, torch.zeros(1, 5), None, 0.5, sums, sums)
