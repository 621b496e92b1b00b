"""modulate, encode_topk and decode: values and gradients against the naive equations, and gradcheck."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import decode, encode_threshold, encode_topk, modulate
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-12  # float64, relative to the RMS

MODULATIONS = [
    pytest.param({"groups": None}, id="one group"),
    pytest.param({"groups": 3}, id="groups"),
    pytest.param({"groups": 50}, id="more groups than tokens: some are empty"),
    pytest.param({"modulated": False}, id="no modulation"),
]
SHAPES = [
    pytest.param(6, 5, 11, 3, id="odd sizes"),
    pytest.param(1, 1, 1, 1, id="all sizes 1"),
    pytest.param(4, 3, 8, 8, id="k=n: some places stay unused"),
]


def gradients(loss, tensors):
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_modulate(modulation, layer_norm):
    p = random_problem(9, 7, 2, 1, **modulation)
    tensors = {"x": p.x.requires_grad_()} | {n: t for n, t in p.parameters().items() if n in ("scale", "shift")}
    actual = modulate(p.x, p.scale, p.shift, p.group, layer_norm=layer_norm)
    expected = naive.modulate(p.x, p.scale, p.shift, p.group, layer_norm)
    assert_close(actual, expected, EXACT)
    probe = torch.randn_like(actual)
    wanted = gradients((expected * probe).sum(), tensors)
    for name, gradient in gradients((actual * probe).sum(), tensors).items():
        assert_close(gradient, wanted[name], EXACT, name)


@pytest.mark.parametrize("missing", ["scale", "shift"])
def test_a_missing_half_of_the_modulation_counts_as_zeros(missing):
    p = random_problem(5, 4, 2, 1, groups=2)
    given = {"scale": p.scale, "shift": p.shift}
    actual = modulate(p.x, **(given | {missing: None}), group=p.group)
    zeros = {missing: torch.zeros_like(p.scale)}
    assert torch.equal(actual, modulate(p.x, **(given | zeros), group=p.group))


def test_modulate_returns_the_dtype_of_x():
    p = random_problem(5, 4, 2, 1, dtype=torch.float32)
    assert modulate(p.x.bfloat16(), p.scale, p.shift).dtype == torch.bfloat16


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("modulation", MODULATIONS[:2] + MODULATIONS[3:])
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("shape", [s.values for s in SHAPES], ids=[s.id for s in SHAPES])
def test_encode_and_decode_agree_with_the_naive_equations(shape, biases, modulation, layer_norm, regime):
    p = random_problem(*shape, biases=biases, **modulation)
    tensors = {"x": p.x.requires_grad_()} | p.parameters()
    modulated = {"scale": p.scale, "shift": p.shift, "group": p.group, "layer_norm": layer_norm}

    values, indices = encode_topk(p.x, p.W_enc, p.b_enc, p.k, **modulated, regime=regime)
    x_hat = decode(values, indices, p.W_dec, p.b_dec, regime=regime)
    z = naive.latents(p.x, p.W_enc, p.b_enc, p.k, **modulated)
    expected = z @ p.W_dec if p.b_dec is None else z @ p.W_dec + p.b_dec

    expected_values, expected_indices = naive.compact(z.detach(), p.k)
    assert torch.equal(indices, expected_indices)
    assert_close(values, expected_values, EXACT, "values")
    assert_close(x_hat, expected, EXACT, "x_hat")
    probe = torch.randn_like(expected)
    wanted = gradients((expected * probe).sum(), tensors)
    for name, gradient in gradients((x_hat * probe).sum(), tensors).items():
        assert_close(gradient, wanted[name], EXACT, name)


def test_modulate_gradcheck():
    p = random_problem(4, 3, 2, 1, groups=2)
    p.x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, s, b: modulate(x, s, b, p.group, layer_norm=True), (p.x, p.scale, p.shift)
    )


def test_encode_gradcheck(regime):
    p = random_problem(4, 3, 9, 2, groups=2)
    p.x.requires_grad_()

    def values(x, W_enc, b_enc, scale, shift):
        return encode_topk(x, W_enc, b_enc, 2, scale=scale, shift=shift, group=p.group, regime=regime)[0]

    assert torch.autograd.gradcheck(values, (p.x, p.W_enc, p.b_enc, p.scale, p.shift))


def test_decode_gradcheck(regime):
    p = random_problem(4, 3, 6, 3)
    values = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 2, 5], [1, 3, -1], [-1, -1, -1], [5, 0, 4]], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda v, W, b: decode(v, indices, W, b, regime=regime), (values, p.W_dec, p.b_dec))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_decode_takes_codes_in_any_order_with_repeats_and_gaps(index_dtype, regime):
    p = random_problem(4, 3, 6, 3)
    values = torch.tensor([[1.0, 2, 3], [-1, 5, 2], [float("nan"), 1, float("inf")], [9, 9, 9]]).double()
    indices = torch.tensor([[5, 0, 5], [-1, 3, 2], [-1, 0, -1], [-1, -1, -1]], dtype=index_dtype)
    values.requires_grad_()
    x_hat = decode(values, indices, p.W_dec, p.b_dec, regime=regime)
    assert_close(x_hat, naive.decode(values, indices, p.W_dec, p.b_dec), EXACT)
    assert torch.equal(x_hat[3], p.b_dec)
    x_hat.sum().backward()
    assert_close(values.grad, torch.where(indices < 0, 0, p.W_dec.sum(1)[indices.long()]), EXACT)


def test_more_tokens_than_one_chunk_holds(regime, monkeypatch):
    p = random_problem(23, 5, 40, 4, modulated=False)
    whole = encode_topk(p.x, p.W_enc, p.b_enc, p.k, regime=regime)
    x_hat = decode(*whole, p.W_dec, p.b_dec, regime=regime)
    wanted = gradients(x_hat.square().sum(), p.parameters())
    monkeypatch.setattr("tide_kernels.options._CHUNK_ELEMENTS_CPU", 7 * 40)
    split = encode_topk(p.x, p.W_enc, p.b_enc, p.k, regime=regime)
    assert torch.equal(split[1], whole[1])
    actual = decode(*split, p.W_dec, p.b_dec, regime=regime)
    assert_close(actual, x_hat, EXACT)
    for name, gradient in gradients(actual.square().sum(), p.parameters()).items():
        assert_close(gradient, wanted[name], EXACT, name)


def test_no_tokens(regime):
    p = random_problem(0, 4, 6, 2, groups=2)
    p.x.requires_grad_()
    values, indices = encode_topk(
        p.x, p.W_enc, p.b_enc, 2, scale=p.scale, shift=p.shift, group=p.group, layer_norm=True, regime=regime
    )
    x_hat = decode(values, indices, p.W_dec, p.b_dec, regime=regime)
    assert values.shape == indices.shape == (0, 2)
    assert x_hat.shape == (0, 4)
    x_hat.sum().backward()
    assert all(not t.grad.any() for t in p.parameters().values())


def test_non_contiguous_arguments(regime):
    p = random_problem(6, 4, 10, 3, groups=2)
    odd = {
        "x": torch.stack([p.x, p.x])[0].T.contiguous().T,
        "W_enc": p.W_enc.detach().T.contiguous().T.requires_grad_(),
        "W_dec": torch.stack([p.W_dec.detach()] * 2, 2)[..., 0].requires_grad_(),
    }
    assert not any(t.is_contiguous() for t in odd.values())
    group = torch.stack([p.group, p.group], 1)[:, 0]
    values, indices = encode_topk(
        odd["x"], odd["W_enc"], p.b_enc, 3, scale=p.scale, shift=p.shift, group=group, regime=regime
    )
    x_hat = decode(values.T.contiguous().T, indices.T.contiguous().T, odd["W_dec"], p.b_dec, regime=regime)
    z = naive.latents(p.x, p.W_enc, p.b_enc, 3, p.scale, p.shift, p.group)
    assert_close(x_hat, z @ p.W_dec + p.b_dec, EXACT)
    x_hat.square().sum().backward()
    (z @ p.W_dec + p.b_dec).square().sum().backward()
    assert_close(odd["W_dec"].grad, p.W_dec.grad, EXACT, "W_dec")
    assert_close(odd["W_enc"].grad, p.W_enc.grad, EXACT, "W_enc")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes_lose_rounding_only(dtype, regime):
    p = random_problem(64, 24, 200, 10, dtype=dtype)
    eps = torch.finfo(dtype).eps
    # The operands are exact in float32. What remains is one rounding of the pre-activations, which are at most 2^3.
    values, indices = encode_topk(p.x, p.W_enc, p.b_enc, p.k, regime=regime)
    pre = p.x.float() @ p.W_enc.float().T + p.b_enc.float()
    assert values.dtype == dtype
    used = indices >= 0
    assert used.all()
    assert (values.float() - pre.gather(1, indices.long())).abs().max() <= 8 * eps
    # For the same code: one rounding of the result, or two in the dense regime, which rounds before the bias.
    x_hat = decode(values, indices, p.W_dec, p.b_dec, regime=regime)
    exact = naive.decode(values.double(), indices, p.W_dec.double(), p.b_dec.double())
    assert x_hat.dtype == dtype
    assert (x_hat.double() - exact).abs().max() <= eps * exact.abs().max()
    # Gradients: operands and results each rounded once; sums are in float32 or inside the matrix product.
    probe = torch.randn_like(x_hat)
    dW, dv = torch.autograd.grad((x_hat * probe).sum(), (p.W_dec, values), retain_graph=True)
    exact_dv = (p.W_dec.double()[indices.long()] * probe.double()[:, None]).sum(-1)
    assert dW.dtype == dv.dtype == dtype
    assert_close(dv, exact_dv, 4 * eps, "values")
    z = torch.zeros(64, 200, dtype=torch.float64).scatter(1, indices.long(), values.double())
    assert_close(dW, z.T @ probe.double(), 8 * eps, "W_dec")  # entries reach eight times the RMS


def test_autocast_computes_narrow_and_returns_wide_gradients(regime):
    p = random_problem(16, 8, 60, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        values, indices = encode_topk(p.x, p.W_enc, p.b_enc, p.k, scale=p.scale, shift=p.shift, regime=regime)
        x_hat = decode(values, indices, p.W_dec, p.b_dec, regime=regime)
    assert values.dtype == x_hat.dtype == torch.bfloat16
    x_hat.float().square().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in p.parameters().values())
    assert all(t.grad.isfinite().all() and t.grad.any() for t in p.parameters().values())


def test_autocast_leaves_float64_alone():
    p = random_problem(4, 3, 6, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert encode_topk(p.x, p.W_enc, p.b_enc, p.k)[0].dtype == torch.float64


def test_tokens_are_cast_to_the_dtype_of_the_weights():
    p = random_problem(4, 3, 6, 2, dtype=torch.float32)
    x = p.x.bfloat16()
    values, indices = encode_topk(x, p.W_enc, p.b_enc, 2)
    expected = encode_topk(x.float(), p.W_enc, p.b_enc, 2)
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])


def test_nan_tokens_show_in_the_code():
    x = torch.ones(3, 4)
    x[1, 2] = float("nan")
    values, _ = encode_topk(x, torch.ones(20, 4), None, 2)
    assert values[1].isnan().all()
    assert values[[0, 2]].isfinite().all()


def test_pre_activations_are_rounded_before_the_selection():
    # 1 + 2^-10 is 1 in bfloat16, which makes a tie that goes to the lower index; in float32 there is no tie.
    x, W_enc = torch.tensor([[1, 2**-10]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert encode_topk(x, W_enc, None, 1)[1].item() == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert encode_topk(x, W_enc, None, 1)[1].item() == 0


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("shape", [(), (11,), (0, 11)], ids=["a number", "of each latent", "of each group and latent"])
def test_encode_by_thresholds_agrees_with_the_plain_formula(shape, modulation, layer_norm, regime):
    p = random_problem(6, 5, 11, 3, **modulation)
    if len(shape) == 2:
        shape = (len(p.scale) if p.scale is not None else 4, 11)
    if p.group is None and len(shape) == 2:
        shape = (1, 11)
    threshold = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tensors = {"x": p.x.requires_grad_()} | {n: t for n, t in p.parameters().items() if n not in ("W_dec", "b_dec")}
    modulated = {"scale": p.scale, "shift": p.shift, "group": p.group, "layer_norm": layer_norm}
    values, indices, count = encode_threshold(p.x, p.W_enc, p.b_enc, threshold, **modulated, capacity=6, regime=regime)

    pre = naive.modulate(p.x, p.scale, p.shift, p.group, layer_norm) @ p.W_enc.T + p.b_enc
    rows = threshold[p.group] if threshold.dim() == 2 and p.group is not None else threshold
    expected, places, counts = naive.rows_above(pre.detach(), rows, 6)
    assert torch.equal(indices, places)
    assert torch.equal(count, counts)
    assert_close(values, expected, EXACT)
    probe = torch.randn_like(expected)
    kept = torch.where(places >= 0, pre.gather(1, places.clamp(min=0).long()), 0)
    wanted = gradients((kept * probe).sum(), tensors)
    for name, gradient in gradients((values * probe).sum(), tensors).items():
        assert_close(gradient, wanted[name], EXACT, name)


def test_gradcheck_of_a_code_by_thresholds(regime):
    p = random_problem(4, 3, 7, 2, groups=2)

    def values(x, W_enc, b_enc, scale, shift):
        modulated = {"scale": scale, "shift": shift, "group": p.group}
        return encode_threshold(x, W_enc, b_enc, 0.3, **modulated, regime=regime)[0]

    assert torch.autograd.gradcheck(values, (p.x.requires_grad_(), p.W_enc, p.b_enc, p.scale, p.shift))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_code_by_thresholds_has_four_times_the_places_of_the_mean(k):
    """Four rows are longer: they keep their largest and count what passed."""
    p = random_problem(4, 3, 12, 2, modulated=False)
    pre = torch.arange(12.0, dtype=torch.float64)
    values, indices, count = encode_threshold(p.x * 0, p.W_enc, pre, torch.tensor(0.5, dtype=torch.float32), k=k)
    width = min(12, 4 * k)
    assert values.shape == (4, width)
    assert count.tolist() == [11] * 4
    assert indices[0, :11].tolist() == list(range(max(1, 12 - width), 12))[:11]


def test_a_threshold_that_requires_grad_gets_none():
    p = random_problem(4, 3, 12, 2)
    threshold = torch.tensor(0.1, requires_grad=True)
    encode_threshold(p.x, p.W_enc, p.b_enc, threshold)[0].sum().backward()
    assert threshold.grad is None
    assert p.W_enc.grad.any()


def test_autocast_chooses_the_dtype_of_a_code_by_thresholds():
    p = random_problem(4, 3, 12, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        values, _, _ = encode_threshold(p.x, p.W_enc, p.b_enc, 0.1)
    assert values.dtype == torch.bfloat16


def test_no_tokens_have_a_code_by_thresholds(regime):
    p = random_problem(0, 3, 12, 2)
    values, indices, count = encode_threshold(p.x, p.W_enc, p.b_enc, 0.1, k=2, regime=regime)
    assert values.shape == indices.shape == (0, 8)
    assert count.shape == (0,)
    values.sum().backward()
    assert not p.W_enc.grad.any()
