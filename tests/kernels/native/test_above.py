"""What is above a threshold: the same bits as the reference's, from rows and from a product."""

import functools

import pytest
import torch

from tide_kernels import native, reference
from tide_kernels.testing import adversarial_rows, assert_close, poisoned

DTYPES = [torch.float32, torch.bfloat16]
# The most candidates of int8 and of bfloat16. Nothing is given up, whatever the share of candidates, or not tried.
INT8, BFLOAT16 = (1e9, 0.0), (0.0, 1e9)

SIZES = [
    pytest.param(1, id="one latent"),
    pytest.param(16, id="one whole group of lanes"),
    pytest.param(97, id="n odd"),
    pytest.param(2500, id="n not a multiple of 16"),
]
# n_tokens, n_latents, d_model
PRODUCTS = [
    pytest.param(1, 1, 1, id="all one"),
    pytest.param(5, 70, 33, id="tiles and columns that end early"),
    pytest.param(37, 2100, 96, id="a trial, an odd number of tokens"),
    pytest.param(1030, 130, 40, id="several tiles of tokens"),
]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(actual, expected):
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num(1.0), want.nan_to_num(1.0))


def thresholds(n_latents, layout):
    """Thresholds, and the group of each token as a function of their number."""
    if layout == "a number":
        return torch.tensor(0.75).expand(1, n_latents), None
    if layout == "a row":
        return normal(1, n_latents, seed=3).abs(), None
    if layout == "negative":
        return normal(1, n_latents, seed=3) - 0.5, None
    if layout == "columns apart":
        return normal(n_latents, 3, seed=3).abs().T, lambda n: torch.arange(n) % 3
    return normal(3, n_latents, seed=3).abs(), lambda n: torch.arange(n) * 2 % 3


LAYOUTS = ["a number", "a row", "negative", "columns apart", "groups"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_latents", SIZES)
class TestRows:
    def arguments(self, n_latents, layout, dtype):
        pre = torch.stack(list(adversarial_rows(n_latents, dtype).values()))
        threshold, group = thresholds(n_latents, layout)
        return pre, threshold, None if group is None else group(len(pre))

    def test_select_above(self, n_latents, layout, dtype):
        pre, threshold, group = self.arguments(n_latents, layout, dtype)
        for capacity in sorted({1, n_latents // 3, n_latents}):
            expected = reference.select_above(pre, threshold, group, None, capacity)
            assert_same(native.select_above(pre, threshold, group, None, capacity), expected)

    def test_ties_up_to_a_cut(self, n_latents, layout, dtype):
        pre, threshold, group = self.arguments(n_latents, layout, dtype)
        threshold = (2 * threshold).round() / 2  # so that many entries are equal to theirs
        pre = (2 * pre).round() / 2
        cut = torch.linspace(-1, n_latents - 1, len(pre)).to(torch.int32)
        for capacity in (n_latents // 4 + 1, n_latents):
            expected = reference.select_above(pre, threshold, group, cut, capacity)
            assert_same(native.select_above(pre, threshold, group, cut, capacity), expected)
        kept = reference.keep_above(pre, threshold, group, cut, expected_z := torch.empty_like(pre))
        assert_same([native.keep_above(pre, threshold, group, cut, z := torch.empty_like(pre)), z], [kept, expected_z])

    def test_keep_above(self, n_latents, layout, dtype):
        pre, threshold, group = self.arguments(n_latents, layout, dtype)
        expected = poisoned(tuple(pre.shape), dtype)
        count = reference.keep_above(pre, threshold, group, None, expected)
        wide = poisoned((len(pre), n_latents + 3), dtype)
        assert_same([native.keep_above(pre, threshold, group, None, wide[:, 2:-1])], [count])
        assert_same([wide[:, 2:-1]], [expected])
        assert wide[:, [0, 1, -1]].isnan().all()
        assert_same([native.keep_above(pre, threshold, group, None, pre), pre], [count, expected])


def test_zeros_of_either_sign_are_equal():
    pre, negative = torch.tensor([[0.0, -0.0, 1e-45, -1e-45]]), torch.full((1, 4), -0.0)
    for threshold in (negative, torch.zeros(1, 4)):
        assert native.select_above(pre, threshold, None, None, 4)[1].tolist() == [[2, -1, -1, -1]]
        cut = torch.tensor([3], dtype=torch.int32)
        assert native.select_above(pre, threshold, None, cut, 4)[1].tolist() == [[0, 1, 2, -1]]


def test_flushed_denormals_are_still_compared():
    pre = torch.tensor([[1e-40, -1.0, 2e-40, 0.0]])
    torch.set_flush_denormal(True)
    try:
        _, indices, _ = native.select_above(pre, torch.zeros(1, 1).expand(1, 4), None, None, 3)
    finally:
        torch.set_flush_denormal(False)
    assert indices.tolist() == [[0, 2, -1]]


def test_strided_rows():
    noise, threshold = normal(50, 300), normal(1, 300, seed=3).abs()
    for pre in (noise[:, 7:290], noise[::3], noise[:, ::2], noise.T[:, :40], noise[:1].expand(4, -1)):
        bar = threshold[:, : pre.shape[1]]
        expected = reference.select_above(pre, bar, None, None, 9)
        assert_same(native.select_above(pre, bar, None, None, 9), expected)


def dots(x, W, b):
    """Each float32 pre-activation as the library sums it, one latent at a time: with a threshold that rules out
    nothing."""
    low = torch.full((1, 1), -torch.inf)
    columns = [screened(x, W[j : j + 1], None if b is None else b[j : j + 1], low, None, 1)[0] for j in range(len(W))]
    return torch.cat(columns, dim=1)


def screened(x, W, b, threshold, group, capacity, shares=BFLOAT16):
    values, indices = poisoned((len(x), capacity), torch.float32), poisoned((len(x), capacity), torch.int32)
    count = poisoned((len(x),), torch.int32)
    done = torch.ops.tide_native.screened_above(x, W, b, threshold, group, *shares, values, indices, count)
    assert done == len(x)
    return values, indices, count


def check(x, W, b, threshold, group=None, pre=None):
    pre = dots(x, W, b) if pre is None else pre
    # Sums that overflow to -inf pass no threshold, so they cannot be known by one.
    pre = torch.where(pre == 0, x.double() @ W.double().T + (0 if b is None else b.double()), pre.double()).float()
    for capacity in sorted({1, len(W) // 3 + 1, len(W)}):
        expected = reference.select_above(pre, threshold, group, None, capacity)
        for shares in (INT8, BFLOAT16):
            assert_same(screened(x, W, b, threshold, group, capacity, shares), expected)


@functools.cache
def product(n_tokens, n_latents, d_model, biased, rounded):
    """Numbers that no layout of thresholds changes, and :func:`dots` of them, by far the slowest part."""
    x, W, b = normal(n_tokens, d_model), normal(n_latents, d_model, seed=1), normal(n_latents, seed=2)
    if rounded:
        x, W, b = x.round(), W.round(), b.round()
    b = b if biased else None
    return x, W, b, dots(x, W, b)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model"), PRODUCTS)
class TestProducts:
    def test_normal_numbers(self, n_tokens, n_latents, d_model, layout, biased):
        x, W, b, pre = product(n_tokens, n_latents, d_model, biased, rounded=False)
        threshold, group = thresholds(n_latents, layout)
        check(x, W, b, threshold * d_model**0.5, None if group is None else group(n_tokens), pre)
        assert_close(pre, x.double() @ W.double().T + (0 if b is None else b.double()), 1e-5)

    def test_entries_equal_to_their_threshold_are_out(self, n_tokens, n_latents, d_model, layout, biased):
        x, W, b, pre = product(n_tokens, n_latents, d_model, biased, rounded=True)
        threshold, group = thresholds(n_latents, layout)
        check(x, W, b, (4 * threshold).round(), None if group is None else group(n_tokens), pre)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("scale_x", [0.0, 1e-42, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("scale_W", [1e-42, 1e-20, 1.0, 1e19])
def test_sizes_at_which_sums_are_flushed(scale_x, scale_W, biased):
    x, W = scale_x * normal(9, 70).clamp(-3, 3), scale_W * normal(90, 70, seed=1).clamp(-3, 3)
    b = normal(90, seed=2) if biased else None
    size = scale_x * scale_W
    for threshold in (0.0, 5 * size, 1.0):
        check(x, W, b, torch.full((1, 90), threshold))


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
def test_values_that_are_no_numbers_pass(bad):
    x, W, b = normal(40, 64).abs(), normal(200, 64, seed=1).abs(), normal(200, seed=2)
    x[3, 5] = W[17, 9] = b[30] = bad
    threshold = torch.full((1, 200), 1e6)
    expected = torch.zeros(40, 200, dtype=torch.bool)
    expected[3] = expected[:, 17] = expected[:, 30] = True
    for shares in (INT8, BFLOAT16):
        values, indices, count = screened(x, W, b, threshold, None, 200, shares)
        assert torch.equal(count, expected.sum(1, dtype=torch.int32))
        assert indices[0].tolist() == [17, 30] + [-1] * 198
        assert torch.equal(values[0, :2].isnan(), torch.tensor([bad != bad] * 2))


def test_errors_as_large_as_their_bound():
    """All elements are rounded up or down, so every product is off by its whole bound."""
    for sign in (1, -1):
        up = 1 + sign * (2**-8 + 2**-9)
        W = torch.full((400, 128), 1.0) + 2**-7 * torch.arange(400.0).unsqueeze(1).floor_divide(100)
        for x in (torch.ones(6, 128), torch.full((6, 128), up)):
            pre = x.double() @ (up * W).double().T
            for threshold in pre[0].unique().float():
                check(x, up * W, None, threshold.view(1, 1).expand(1, 400))


# A token, a latent, a threshold just below their product, and a screen. Without one term of the bound, the latent would
# be ruled out.
UP = 2.0**-8  # half a unit of bfloat16's last place at 1
BOUND = [
    pytest.param([1 + UP, 1, 1], [8, -7, 0], BFLOAT16, id="the token's rounding"),
    pytest.param([8, -7, 1], [1 + UP, 1, 0], BFLOAT16, id="the latent's rounding"),
    # 0.4 becomes 0, all other numbers are integers.
    pytest.param([127, 1, 0.4, 0], [1, 0, 127, 0], INT8, id="the token's rounding, int8"),
    pytest.param([1, 1, 127, 0], [127, 0, 0.4, 0], INT8, id="the latent's rounding, int8"),
    # In the order of columns 2^24 swallows the 1; `dots` adds columns 0 and 8 first.
    pytest.param([1] * 16, [2**24, 1, *[0] * 6, -(2**24), *[0] * 7], BFLOAT16, id="sums"),
    pytest.param([2.0**-63] * 64, [2.0**-64] * 64, BFLOAT16, id="flushed"),
]


@pytest.mark.parametrize(("token", "latent", "shares"), BOUND)
def test_a_value_at_its_bound(token, latent, shares):
    x, W = torch.tensor([token], dtype=torch.float32), torch.tensor([latent], dtype=torch.float32)
    value = dots(x, W, None)
    below = value.nextafter(torch.tensor(-torch.inf))
    for threshold, count in ((below, 1), (value, 0)):
        assert screened(x, W, None, threshold, None, 1, shares)[2].item() == count


def test_a_token_of_zeros_costs_nothing():
    """Its products are exact, so with a threshold of 0 no entry is computed in float32."""
    x, W, threshold = torch.zeros(300, 64), normal(2048, 64, seed=1), torch.zeros(1, 1).expand(1, 2048)
    out = torch.empty(300, 8), torch.empty(300, 8, dtype=torch.int32), torch.empty(300, dtype=torch.int32)
    assert torch.ops.tide_native.screened_above(x, W, None, threshold, None, 0.0, 1e-9, *out) == 300
    assert (out[1] == -1).all()
    assert (out[2] == 0).all()


def test_too_many_candidates_are_left_to_a_whole_product():
    x, W = normal(300, 64) + 50, normal(2048, 64, seed=1) / 1000 + 1  # all latents are almost the same
    close = (x @ W.T).median().view(1, 1).expand(1, 2048)
    out = torch.empty(300, 8), torch.empty(300, 8, dtype=torch.int32), torch.empty(300, dtype=torch.int32)
    for shares in ((0.125, 0.0), (0.0, 0.125), (0.125, 0.125), (0.0, 0.0)):
        assert torch.ops.tide_native.screened_above(x, W, None, close, None, *shares, *out) == 0


@pytest.mark.parametrize("screens", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_code_above(monkeypatch, dtype, screens):
    monkeypatch.setattr(native, "_screening_pays", lambda *_: screens)
    monkeypatch.setattr(native, "_CHUNK_ELEMENTS", 50 * 2048)
    x, W, b = (t.round().to(dtype) for t in (normal(130, 64), normal(2048, 64, seed=1), normal(2048, seed=2)))
    threshold, group = normal(3, 2048, seed=3).abs().round() * 8, torch.arange(130) % 3
    for capacity in (100, 2048):
        pre = (x.double() @ W.double().T + b.double()).to(dtype)
        expected = reference.select_above(pre, threshold, group, None, capacity)
        assert_same(native.code_above(x, W, b, threshold, group, capacity), expected)
    close = W[:1].expand(2048, -1)  # so many near its threshold that the screen gives up
    pre = (x.double() @ close.double().T).to(dtype)
    expected = reference.select_above(pre, threshold, group, None, 100)
    assert_same(native.code_above(x, close, None, threshold, group, 100), expected)


def test_threads_make_no_difference(threads):
    x, W, b = normal(1301, 96), normal(1500, 96, seed=1), normal(1500, seed=2)
    x[5, 5] = torch.nan
    threshold, group = normal(3, 1500, seed=3).abs() * 16, torch.arange(1301) % 3
    results = []
    for count in (1, 2, 3):
        threads(count)
        results += [screened(x, W, b, threshold, group, 90, shares) for shares in (INT8, BFLOAT16)]
        results.append(native.select_above(dots(x, W[:200], b[:200]), threshold[:, :200], group, None, 20))
    for i, result in enumerate(results):
        assert_same(result, results[2 if i % 3 == 2 else 0])


def test_no_tokens():
    threshold = torch.zeros(1, 1).expand(1, 10)
    pre, W = torch.empty(0, 10), normal(10, 4)
    for values, indices, count in (
        native.select_above(pre, threshold, None, None, 3),
        native.code_above(torch.empty(0, 4), W, None, threshold, None, 3),
    ):
        assert values.shape == indices.shape == (0, 3)
        assert count.shape == (0,)
    assert native.keep_above(pre, threshold, None, None, pre).shape == (0,)


def test_bad_input_is_refused():
    pre, threshold, group = normal(3, 5), torch.zeros(2, 5), torch.tensor([0, 1, 0])
    for wrong, message in (
        ((pre, threshold[:1, :4], None, None, 2), r"threshold is \[1, 4\], not \[1, 5\]"),
        ((pre, threshold, None, None, 2), "threshold has 2 rows: pass the group of each token"),
        ((pre, threshold.double(), group, None, 2), "threshold is not float32"),
        ((pre, threshold, group + 1, None, 2), r"group holds a number outside \[0, 2\)"),
        ((pre, threshold, group[:2], None, 2), "group is not one int64 number a token"),
        ((pre, threshold, group, group, 2), "cut is not one int32 number a token"),
        ((pre, threshold, group, None, 6), "capacity is 6, not from 0 to 5"),
        ((pre.double(), threshold, group, None, 2), "pre has a dtype that is not served"),
    ):
        with pytest.raises(RuntimeError, match=message):
            native.select_above(*wrong)
    with pytest.raises(RuntimeError, match="out has another dtype than pre"):
        native.keep_above(pre, threshold, group, None, pre.bfloat16())
    with pytest.raises(RuntimeError, match="columns of out do not lie side by side"):
        native.keep_above(pre, threshold, group, None, normal(5, 3).T)
