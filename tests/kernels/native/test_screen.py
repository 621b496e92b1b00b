"""The selection by a screen in int8 or bfloat16: the same bits as from all float32 dot products."""

import pytest
import torch

from tide_kernels import native, reference
from tide_kernels.testing import assert_close

# The most candidates of int8 and of bfloat16. Nothing is given up, whatever the share of candidates, or not tried.
INT8, BFLOAT16 = (1e9, 0.0), (0.0, 1e9)

# n_tokens, n_latents, d_model, k
SHAPES = [
    pytest.param(1, 1, 1, 1, id="all one"),
    pytest.param(5, 70, 33, 7, id="tiles and columns that end early"),
    pytest.param(13, 300, 64, 300, id="k=n"),
    pytest.param(64, 1100, 96, 8, id="few active"),
    pytest.param(70, 530, 200, 27, id="5 %, a short last tile"),
    pytest.param(300, 2100, 40, 105, id="several tiles of tokens"),
]


def screened(x, W, b, k, shares=BFLOAT16):
    values, indices = torch.full((len(x), k), 7.0), torch.full((len(x), k), 7, dtype=torch.int32)
    return values, indices, torch.ops.tide_native.screened(x, W, b, *shares, values, indices)


def dots(x, W, b):
    """The positive part of each float32 pre-activation as the library sums it, one latent at a time: with a single
    latent there is nothing to rule out."""
    columns = [screened(x, W[j : j + 1], None if b is None else b[j : j + 1], 1)[0] for j in range(len(W))]
    return torch.cat(columns, dim=1)


def check(x, W, b, k):
    expected_values, expected_indices = reference.select(dots(x, W, b), k)
    for shares in (INT8, BFLOAT16):
        values, indices, done = screened(x, W, b, k, shares)
        assert done == len(x)
        assert torch.equal(indices, expected_indices)
        assert torch.equal(values.isnan(), expected_values.isnan())
        assert torch.equal(values.nan_to_num(1.0), expected_values.nan_to_num(1.0))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model", "k"), SHAPES)
class TestBits:
    def test_normal_numbers(self, n_tokens, n_latents, d_model, k, biased):
        b = normal(n_latents, seed=2) if biased else None
        x, W = normal(n_tokens, d_model), normal(n_latents, d_model, seed=1)
        check(x, W, b, k)
        pre = x.double() @ W.double().T + (0 if b is None else b.double())
        assert_close(dots(x, W, b), pre.relu(), 1e-5)

    def test_ties(self, n_tokens, n_latents, d_model, k, biased):
        b = normal(n_latents, seed=2).round() if biased else None
        check(normal(n_tokens, d_model).round(), normal(n_latents, d_model, seed=1).round(), b, k)
        # Every latent four times: the first of them goes first.
        W = normal(n_latents // 4 + 1, d_model, seed=1).repeat(4, 1)[:n_latents]
        check(normal(n_tokens, d_model), W, None, k)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("scale_x", [0.0, 1e-42, 1e-30, 1e-20, 1.0, 1e15, 1e19, 1e30, 3e38])
@pytest.mark.parametrize("scale_W", [1e-42, 1e-20, 1.0, 1e19, 3e38])
def test_sizes_at_which_sums_are_flushed_or_overflow(scale_x, scale_W, biased):
    x, W = (0.3 * normal(9, 70)).clamp(-1, 1), (0.3 * normal(90, 70, seed=1)).clamp(-1, 1)
    b = normal(90, seed=2) if biased else None
    for mixed in (False, True):
        if mixed:  # other latents and tokens of usual size
            x[::2], W[::2] = x[::2] / max(scale_x, 1e-3), W[::2] / scale_W
        check(x * scale_x, W * scale_W, b, 9)


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf, -0.0])
def test_values_that_are_no_numbers(bad):
    x, W, b = normal(40, 64), normal(200, 64, seed=1), normal(200, seed=2)
    x[3, 5] = x[7, 63] = W[0, 0] = W[17, 9] = W[199, 63] = b[30] = bad
    x[9] = bad
    check(x, W, b, 11)
    check(x, W, None, 200)


@pytest.mark.parametrize("bias", [1e-45, 1e-42, 1e-39, 1e-38, 1e-33])
def test_biases_that_bfloat16_cannot_hold(bias):
    b = bias * normal(200, seed=2)
    expected_values, expected_indices = reference.select(b.expand(30, -1), 40)
    for shares in (INT8, BFLOAT16):
        values, indices, _ = screened(torch.zeros(30, 64), normal(200, 64, seed=1), b, 40, shares)
        assert torch.equal(indices, expected_indices)
        assert torch.equal(values, expected_values)


def test_fewer_positives_than_places():
    x, W = normal(30, 64), normal(200, 64, seed=1)
    check(x, W, torch.full((200,), -15.0), 40)
    check(x, W, torch.full((200,), -1e6), 40)
    check(torch.zeros(30, 64), W, None, 40)
    check(torch.zeros(30, 64), W, normal(200, seed=2), 40)
    check(x, torch.zeros(200, 64), None, 40)
    check(torch.cat((x, torch.zeros_like(x))), torch.cat((W, torch.zeros_like(W))), None, 190)


def test_errors_as_large_as_their_bound():
    """All elements are rounded up, so every product is too large, by its whole bound; or only half the latents' are."""
    up = 1 + 2**-8 + 2**-9
    steps = torch.arange(400.0).unsqueeze(1)
    for rows in (slice(None), slice(0, None, 2), slice(200, None)):
        W = torch.full((400, 128), 1.0) + 2**-7 * steps.floor_divide(100)
        W[rows] *= up
        for x in (torch.ones(6, 128), torch.full((6, 128), up)):
            check(x, W, None, 20)
            check(x, W, 1e-4 * steps.squeeze(1), 20)


# A token, two latents and a screen. Without one term of the bound, the first latent, whose value is the larger one,
# would be ruled out.
UP = 2.0**-8  # half a unit of bfloat16's last place at 1
BOUND = [
    # 1 + UP + UP / 8 is first 1 + 5 UP / 8, then 1. The other is 1 + UP + UP / 16, then 1 + 2 UP.
    pytest.param([1, 1, 1], [0.5 + UP / 2, 0.5, 5 * UP / 8], [1, UP, UP / 16], BFLOAT16, id="the product's rounding"),
    pytest.param([1 + UP, 1, 1], [8, -7, 0], [0, 0, 1 + 4 * UP], BFLOAT16, id="the token's rounding"),
    pytest.param([8, -7, 1], [1 + UP, 1, 0], [0, 0, 1 + 4 * UP], BFLOAT16, id="the latent's rounding"),
    # 0.4 becomes 0, all other numbers are integers.
    pytest.param([127, 1, 0.4, 0], [1, 0, 127, 0], [1, 20, 0, 127], INT8, id="the token's rounding, int8"),
    pytest.param([1, 1, 127, 0], [127, 0, 0.4, 0], [127, 20, 0, 0], INT8, id="the latent's rounding, int8"),
    # In the order of columns 2^24 swallows the 1; `dots` adds columns 0 and 8 first.
    pytest.param([1] * 16, [2**24, 1, *[0] * 6, -(2**24), *[0] * 7], [0, 0.5, *[0] * 14], BFLOAT16, id="sums"),
    # Each product of the first is flushed to 0; the second's is not.
    pytest.param([2.0**-63] * 64, [2.0**-64] * 64, [2.0**-60, *[0] * 63], BFLOAT16, id="flushed"),
]


@pytest.mark.parametrize(("token", "first", "second", "shares"), BOUND)
def test_a_value_at_its_bound(token, first, second, shares):
    x, W = torch.tensor([token], dtype=torch.float32), torch.tensor([first, second], dtype=torch.float32)
    assert dots(x, W, None).argmax() == 0
    assert screened(x, W, None, 1, shares)[1].item() == 0
    check(x.expand(7, -1), W, None, 1)


def test_a_cut_that_is_too_high():
    """Twenty latents are approximated by 0.5 and are 0.27; twenty that are 0.3 exactly have to be found instead."""
    overrated = torch.cat((torch.full((64,), 1 + 2**-8 + 2**-12), torch.full((64,), -1.0)))
    W = torch.zeros(300, 128)
    W[40:60], W[200:220, 5] = overrated, 0.3
    x, b = torch.ones(7, 128), 1e-3 * normal(300).abs()
    check(x, W, None, 20)
    check(x, W, b, 20)
    assert screened(x, W, None, 20)[1][0].tolist() == list(range(200, 220))


def test_threads_make_no_difference(threads):
    x, W, b = normal(301, 96), normal(1500, 96, seed=1), normal(1500, seed=2)
    x[5, 5] = torch.nan
    results = []
    for count in (1, 2, 3):
        threads(count)
        results += [screened(x, W, b, 75, shares)[:2] for shares in (INT8, BFLOAT16)]
    assert all(torch.equal(a.nan_to_num(), c.nan_to_num()) for r in results for a, c in zip(r, results[0], strict=True))


def test_strided_operands():
    x, W, b = normal(20, 80), normal(300, 90, seed=1), normal(600, seed=2)[::2]
    for rows, latents in ((x[:, 7:70], W[:, 3:66]), (x[::3, :63], W[:, 20:83]), (x.T[:63].T, W.T[:63].T)):
        values, indices, _ = screened(rows, latents, b, 15)
        expected = screened(rows.contiguous(), latents.contiguous(), b.contiguous(), 15)
        assert torch.equal(values, expected[0])
        assert torch.equal(indices, expected[1])


def test_too_many_candidates_are_left_to_a_whole_product():
    x, W = normal(300, 64) + 50, normal(2048, 64, seed=1) / 1000 + 1  # all latents are almost the same
    for shares in ((0.125, 0.0), (0.0, 0.125), (0.125, 0.125)):
        assert screened(x, W, None, 30, shares)[2] == 0
        assert screened(normal(300, 64), normal(2048, 64, seed=1), None, 30, shares)[2] == 300
    assert screened(x, W, None, 30, (0.0, 0.0))[2] == 0


@pytest.mark.parametrize("screens", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_select_product(monkeypatch, dtype, screens):
    monkeypatch.setattr(native, "_screening_pays", lambda *_: screens)
    x, W, b = (t.round().to(dtype) for t in (normal(130, 64), normal(2048, 64, seed=1), normal(2048, seed=2)))
    expected = reference.select((x.double() @ W.double().T + b.double()).to(dtype), 60)
    for close in (False, True):  # distinct latents; so many ties that the screen gives up
        if close:
            W, b = W[:1].expand(2048, -1), None
            expected = reference.select((x.double() @ W.double().T).to(dtype), 60)
        actual = native.select_product(x, W, b, 60)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_bad_input_is_refused():
    x, W = normal(3, 5), normal(7, 5)
    for wrong, message in (
        ((x.double(), W, None, 2), "x is not float32"),
        ((x, W.bfloat16(), None, 2), "W is not float32"),
        ((x[:, :4], W, None, 2), r"x is \[3, 4\], not \[3, 5\]"),
        ((x, W, normal(6), 2), "b is not a vector of one element per latent"),
        ((x, W, None, 8), "k is 8, not from 1 to 7"),
    ):
        with pytest.raises(RuntimeError, match=message):
            screened(*wrong)
    assert screened(x[:0], W, None, 2)[2] == 0
