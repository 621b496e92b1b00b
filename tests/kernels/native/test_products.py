"""gather, sampled, scatter and the walk over latents, against float64."""

import pytest
import torch

from tide_kernels import native, reference
from tide_kernels.testing import assert_close

DTYPES = [torch.float32, torch.bfloat16]

# n_tokens, n_latents, d_model, k
SHAPES = [
    pytest.param(0, 5, 3, 2, id="no tokens"),
    pytest.param(1, 1, 1, 1, id="all one"),
    pytest.param(7, 50, 33, 5, id="few uses a latent: whole rows"),
    pytest.param(65, 300, 200, 30, id="a short last panel"),
    pytest.param(130, 97, 129, 97, id="k=n, one column in the last unit"),
    pytest.param(40, 5000, 70, 3, id="most latents unused"),
    pytest.param(300, 2100, 256, 40, id="several segments, several blocks of latents"),
]
KINDS = ["ascending", "any order"]


def code(n_tokens, n_latents, k, kind, dtype):
    """Values and indices as a selection returns them, or unsorted, with repeats and unused places anywhere."""
    generator = torch.Generator().manual_seed(n_latents)
    if kind == "ascending":
        return reference.select(torch.randn(n_tokens, n_latents, generator=generator).to(dtype), k)
    indices = torch.randint(-1, n_latents, (n_tokens, k), generator=generator, dtype=torch.int32)
    return torch.randn(n_tokens, k, generator=generator).to(dtype), indices


def normal(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model", "k"), SHAPES)
class TestAgainstFloat64:
    def test_gather_and_sampled(self, n_tokens, n_latents, d_model, k, kind, dtype):
        values, indices = code(n_tokens, n_latents, k, kind, dtype)
        W, rows = normal(n_latents, d_model, dtype=dtype), normal(n_tokens, d_model, seed=2)
        expected = reference.gather(values.double(), indices, W.double())
        assert_close(native.gather(values, indices, W), expected, 1e-5, "gather")
        expected = reference.sampled(rows.double(), W.double(), indices)
        assert_close(native.sampled(rows, W, indices), expected, 1e-5, "sampled")
        assert native.gather(values, indices, W).dtype == native.sampled(rows, W, indices).dtype == torch.float32

    def test_scatter(self, n_tokens, n_latents, d_model, k, kind, dtype):
        values, indices = code(n_tokens, n_latents, k, kind, dtype)
        rows, out = normal(n_tokens, d_model, dtype=dtype), normal(n_latents, d_model, seed=2)
        expected = out.double()
        reference.scatter(values.double(), reference.transpose(indices, n_latents), rows.double(), expected)
        native.scatter(values, native.transpose(indices, n_latents), rows, out)
        assert_close(out, expected, 1e-5)

    @pytest.mark.parametrize("with_extra", [True, False])
    def test_backward_latents(self, n_tokens, n_latents, d_model, k, kind, dtype, with_extra):
        values, indices = code(n_tokens, n_latents, k, kind, dtype)
        W_dec, x_mod = normal(n_latents, d_model, dtype=dtype), normal(n_tokens, d_model, dtype=dtype, seed=2)
        grad = normal(n_tokens, d_model, seed=3)
        extra = normal(n_tokens, k, seed=4) if with_extra else None
        shapes = {"grad_W_dec": (n_latents, d_model), "grad_W_enc": (n_latents, d_model), "grad_b_enc": (n_latents,)}
        sums = {name: normal(*shape, seed=5) for name, shape in shapes.items()}
        expected = {name: t.double() for name, t in sums.items()}
        rounded = grad.to(dtype).double()
        places = reference.transpose(indices, n_latents)
        grad_values = reference.sampled(rounded, W_dec.double(), indices)
        if extra is not None:
            grad_values += torch.where(indices >= 0, extra.double(), 0)
        reference.scatter(values.double(), places, rounded, expected["grad_W_dec"])
        reference.scatter(grad_values, places, grad_values.new_ones(n_tokens, 1), expected["grad_b_enc"].view(-1, 1))
        reference.scatter(grad_values.to(dtype), places, x_mod.double(), expected["grad_W_enc"])
        layout = native.transpose(indices, n_latents)
        actual = native.backward_latents(values, indices, layout, grad, x_mod, W_dec, extra, *sums.values())
        assert_close(actual, grad_values, 1e-5, "grad_values")
        # In bfloat16 a product at a rounding boundary may be rounded either way.
        loose = {"grad_W_enc": 1e-5 if dtype == torch.float32 else 3e-2}
        for name, total in sums.items():
            assert_close(total, expected[name], loose.get(name, 1e-5), name)


def test_gradients_that_are_not_wanted():
    values, indices = code(20, 60, 5, "ascending", torch.float32)
    W_dec, x_mod, grad = normal(60, 40), normal(20, 40, seed=2), normal(20, 40, seed=3)
    layout = native.transpose(indices, 60)
    everything = [torch.zeros(60, 40), torch.zeros(60, 40), torch.zeros(60)]
    full = native.backward_latents(values, indices, layout, grad, x_mod, W_dec, None, *everything)
    for wanted in range(8):
        some = [torch.zeros_like(t) if wanted >> i & 1 else None for i, t in enumerate(everything)]
        assert torch.equal(native.backward_latents(values, indices, layout, grad, x_mod, W_dec, None, *some), full)
        assert all(t is None or torch.equal(t, all_) for t, all_ in zip(some, everything, strict=True))


def names_of(wanted):
    """The gradients whose bits are set."""
    return "+".join(name for bit, name in enumerate(("W_dec", "W_enc", "b_enc")) if wanted >> bit & 1)


@pytest.mark.parametrize("wanted", range(1, 8), ids=names_of)
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model", "k"), SHAPES)
def test_squares_are_those_of_the_finished_rows(n_tokens, n_latents, d_model, k, wanted, threads):
    """Rows without places count too; the number of threads changes no bit."""
    values, indices = code(n_tokens, n_latents, k, "ascending", torch.float32)
    W_dec, x_mod, grad = (
        normal(n_latents, d_model),
        normal(n_tokens, d_model, seed=2),
        normal(n_tokens, d_model, seed=3),
    )
    shapes = [(n_latents, d_model), (n_latents, d_model), (n_latents,)]
    found = []
    for number in (1, 3):
        threads(number)
        sums = [normal(*shape, seed=5) if wanted >> i & 1 else None for i, shape in enumerate(shapes)]
        squares = torch.tensor(float("nan"), dtype=torch.float64)
        layout = native.transpose(indices, n_latents)
        native.backward_latents(values, indices, layout, grad, x_mod, W_dec, None, *sums, squares=squares)
        exact = sum(float(each.double().square().sum()) for each in sums if each is not None)
        assert float(squares) == pytest.approx(exact, rel=1e-6)
        found.append(float(squares))
    assert found[0] == found[1]


@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("wanted", range(1, 8), ids=names_of)
def test_a_start_replaces_what_gradients_hold(wanted, start):
    """Also in the rows of latents without a place."""
    values, indices = code(40, 700, 3, "ascending", torch.float32)
    W_dec, W_enc, x_mod, grad = normal(700, 70), normal(700, 70, seed=6), normal(40, 70, seed=2), normal(40, 70, seed=3)
    layout = native.transpose(indices, 700)
    begins = [start * W_dec, start * W_enc, torch.zeros(700)]
    added = [each if wanted >> i & 1 else None for i, each in enumerate(begins)]
    started = [None if each is None else torch.full_like(each, torch.nan) for each in added]
    expected = native.backward_latents(values, indices, layout, grad, x_mod, W_dec, None, *added)
    arguments = (values, indices, layout, grad, x_mod, W_dec, None)
    assert torch.equal(native.backward_latents(*arguments, *started, W_enc=W_enc, start=start), expected)
    assert all(a is None or torch.equal(a, b) for a, b in zip(started, added, strict=True))
    if wanted & 2 and start:
        with pytest.raises(RuntimeError, match="a start of W_enc's gradient needs W_enc"):
            native.backward_latents(*arguments, *started, start=start)


def test_transpose_is_ordered_by_latent_and_token():
    indices = torch.tensor([[3, 0, 3], [-1, 3, 1], [0, -1, -1]], dtype=torch.int32)
    offsets, tokens, slots = native.transpose(indices, 5)
    assert offsets.tolist() == [0, 2, 3, 3, 6, 6]
    assert tokens.tolist() == [0, 2, 1, 0, 0, 1]
    assert slots.tolist() == [1, 0, 2, 0, 2, 1]


def test_what_stands_at_unused_places_is_ignored():
    values, indices = torch.full((3, 4), torch.nan), torch.full((3, 4), -1, dtype=torch.int32)
    W, grad = normal(6, 5), normal(3, 5)
    assert not native.gather(values, indices, W).any()
    assert not native.sampled(grad, W, indices).any()
    out = torch.zeros(6, 5)
    native.scatter(values, native.transpose(indices, 6), grad, out)
    assert not out.any()


def test_nan_shows():
    values, indices = code(20, 30, 10, "ascending", torch.float32)
    W = normal(30, 40)
    W[int(indices[3, 2]), 7] = torch.nan
    assert native.gather(values, indices, W)[3, 7].isnan()
    assert native.sampled(normal(20, 40), W, indices)[3, 2].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [3, 60], ids=["whole rows", "packed panels"])
def test_threads_make_no_difference(threads, dtype, k):
    n_tokens, n_latents, d_model = 300, 500, 200
    values, indices = code(n_tokens, n_latents, k, "ascending", dtype)
    W, x_mod, grad = (
        normal(n_latents, d_model, dtype=dtype),
        normal(n_tokens, d_model, dtype=dtype),
        normal(n_tokens, d_model),
    )

    def everything():
        layout = native.transpose(indices, n_latents)
        out, sums = torch.zeros(n_latents, d_model), [torch.zeros(n_latents, d_model) for _ in range(2)]
        sums.append(torch.zeros(n_latents))
        native.scatter(values, layout, x_mod, out)
        grad_values = native.backward_latents(values, indices, layout, grad, x_mod, W, None, *sums)
        return [*layout, out, *sums, grad_values, native.gather(values, indices, W), native.sampled(grad, W, indices)]

    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(everything())
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_strided_and_misaligned_operands():
    values, indices = code(30, 80, 20, "ascending", torch.float32)
    wide, tall = normal(80, 131), normal(131, 80)
    for W in (wide[:, 3:], tall.T, wide[::1, :120]):
        assert_close(native.gather(values, indices, W), reference.gather(values.double(), indices, W.double()), 1e-5)
    odd = normal(81 * 40 + 1, dtype=torch.bfloat16)[1:].as_strided((80, 40), (40, 1))
    expected = reference.gather(values.double(), indices, odd.double())
    assert_close(native.gather(values.T.contiguous().T, indices.T.contiguous().T, odd), expected, 1e-5)
    rows = normal(30, 90)[:, 10:50]
    out, expected = torch.zeros(80, 40), torch.zeros(80, 40, dtype=torch.float64)
    native.scatter(values, native.transpose(indices.long(), 80), rows, out)
    reference.scatter(values.double(), reference.transpose(indices, 80), rows.double(), expected)
    assert_close(out, expected, 1e-5)


def test_weights_further_apart_than_int32():
    stride = 2**30 + 25
    try:
        store = torch.empty(2 * stride + 40, dtype=torch.bfloat16)  # pages that are never written take no memory
    except RuntimeError:
        pytest.skip("not enough address space")
    W = store.as_strided((3, 40), (stride, 1))
    W.copy_(normal(3, 40))
    for n_tokens in (1, 20):  # whole rows; packed panels
        values, indices = code(n_tokens, 3, 3, "ascending", torch.bfloat16)
        assert_close(native.gather(values, indices, W), reference.gather(values.double(), indices, W.double()), 1e-5)
        grad = normal(n_tokens, 40)
        expected = reference.sampled(grad.to(torch.bfloat16).double(), W.double(), indices)
        layout = native.transpose(indices, 3)
        actual = native.backward_latents(values, indices, layout, grad, grad, W, None, None, None, None)
        assert_close(actual, expected, 1e-5)


class TestBadInput:
    values, indices, W = normal(4, 2), torch.tensor([[0, 1]] * 4, dtype=torch.int32), normal(5, 8)

    @pytest.mark.parametrize("index", [5, -2, 2**31 - 1, -(2**31)])
    def test_indices_out_of_range(self, index):
        indices = self.indices.clone()
        indices[2, 1] = index
        with pytest.raises(RuntimeError, match=r"indices of token 2 lie outside \[-1, 5\)"):
            native.gather(self.values, indices, self.W)
        with pytest.raises(RuntimeError, match=r"indices of token 2 lie outside \[-1, 5\)"):
            native.sampled(normal(4, 8), self.W, indices)
        with pytest.raises(RuntimeError, match=r"indices lie outside \[-1, 5\)"):
            native.transpose(indices, 5)

    def test_wide_indices_are_not_wrapped(self):
        with pytest.raises(RuntimeError, match=r"outside \[-1, 5\)"):
            native.gather(self.values, self.indices.long() + 2**32, self.W)

    def test_a_layout_of_another_code(self):
        layout = native.transpose(self.indices, 5)
        with pytest.raises(RuntimeError, match="the layout belongs to another code"):
            native.scatter(self.values[:2], layout, normal(2, 8), torch.zeros(5, 8))
        with pytest.raises(RuntimeError, match="the layout has 5 latents and the weights 6"):
            native.scatter(self.values, layout, normal(4, 8), torch.zeros(6, 8))

    def test_shapes_and_dtypes(self):
        layout = native.transpose(self.indices, 5)
        with pytest.raises(RuntimeError, match=r"values is \[3, 2\], not \[4, 2\]"):
            native.gather(self.values[:3], self.indices, self.W)
        with pytest.raises(RuntimeError, match="W has a dtype that is not served"):
            native.gather(self.values, self.indices, self.W.double())
        with pytest.raises(RuntimeError, match="indices are not int32 or int64"):
            native.gather(self.values, self.indices.float(), self.W)
        with pytest.raises(RuntimeError, match=r"rows is \[4, 7\], not \[4, 8\]"):
            native.scatter(self.values, layout, normal(4, 7), torch.zeros(5, 8))
        with pytest.raises(RuntimeError, match="out has to be contiguous float32"):
            native.scatter(self.values, layout, normal(4, 8), torch.zeros(8, 5).T)
        with pytest.raises(RuntimeError, match="x_mod is"):
            native.backward_latents(
                self.values,
                self.indices,
                layout,
                normal(4, 8),
                normal(3, 8),
                self.W,
                None,
                None,
                torch.zeros(5, 8),
                None,
            )
