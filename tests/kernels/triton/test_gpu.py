"""On a GPU: bfloat16 at training sizes, equal bits from run to run, and no synchronisation with the device."""

from importlib import import_module

import pytest
import torch

from tests.helpers.codes import check_range, dense
from tide_kernels import LossWeights, reference, tide_loss, triton
from tide_kernels.testing import assert_close, random_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

N_TOKENS, N_LATENTS, D_MODEL, K, GROUPS = 4096, 18432, 1152, 922, 16

# Sums of up to N_LATENTS terms in float32, in any order; for results rounded to bfloat16, half a unit in the last of 8
# bits, on entries of up to about six times the RMS.
SUM, ROUNDED = 1e-4, 8 * 2**-9


def normal(*shape, seed, dtype=torch.bfloat16, size=1.0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.randn(shape, generator=generator, device="cuda") * size).to(dtype)


def twice(function):
    """The function's result. Asserts that a second run gives the same bits and that neither waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        runs = [function(), function()]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for first, second in zip(*(run if isinstance(run, tuple) else (run,) for run in runs), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    return runs[0]


@pytest.fixture(scope="module")
def pre():
    return normal(N_TOKENS, N_LATENTS, seed=0)


@pytest.fixture(scope="module")
def z(pre):
    out = pre.clone()
    triton.keep_top_(out, K)
    return out


@pytest.mark.parametrize(("n_latents", "k"), [(4608, 230), (18432, 922), (73728, 3686), (73728, 14745), (18433, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_select(n_latents, k, dtype):
    rows = normal(256, n_latents, seed=1, dtype=dtype)
    rows[::7] = (rows[::7] * 2).round()
    rows[3, 5] = torch.nan
    values, indices = twice(lambda: triton.select(rows, k))
    expected = reference.select(rows, k)
    assert torch.equal(indices, expected[1])
    assert torch.equal(values.nan_to_num(77.0), expected[0].nan_to_num(77.0))

    def in_place():
        out = rows.clone()
        triton.keep_top_(out, k)
        return out.nan_to_num(77.0)

    assert torch.equal(twice(in_place), dense(values, indices, n_latents).nan_to_num(77.0))


def test_select_of_many_rows(pre, z):
    values, indices = twice(lambda: triton.select(pre, K))
    assert torch.equal(z, dense(values, indices, N_LATENTS))
    assert bool(((z != 0).sum(1) == K).all())
    # No discarded entry is larger than a kept one.
    assert bool((pre.masked_fill(z != 0, -torch.inf).amax(1) <= values.amin(1)).all())


def test_sparse_products():
    k, n_latents = 64, N_LATENTS
    W, grad, x = (normal(n, D_MODEL, seed=i) for i, n in enumerate((n_latents, N_TOKENS, N_TOKENS)))
    values, indices = triton.select(normal(N_TOKENS, n_latents, seed=3), k)
    check_range(indices, n_latents)
    indices[:, 0] = 5  # one latent is active on every token, in two places of some
    layout = triton.transpose(indices, n_latents)
    expected = reference.gather(values.float(), indices, W.float())
    assert_close(twice(lambda: triton.gather(values, indices, W)), expected, SUM, "gather")
    slopes = reference.sampled(grad.float(), W.float(), indices)
    assert_close(twice(lambda: triton.sampled(grad, W, indices)), slopes, SUM, "sampled")

    def backward():
        sums = [torch.zeros(n_latents, D_MODEL, device="cuda") for _ in range(2)]
        bias = torch.zeros(n_latents, device="cuda")
        again = triton.transpose(indices, n_latents)
        return (triton.backward_latents(values, indices, again, grad, x, W, None, *sums, bias), *sums, bias)

    out = twice(backward)
    assert_close(out[0], slopes, SUM, "grad_values")
    reference_layout = reference.transpose(indices, n_latents)
    rounded = out[0].bfloat16().float()
    for actual, weights, rows in ((out[1], values.float(), grad), (out[2], rounded, x)):
        expected = torch.zeros(n_latents, D_MODEL, device="cuda")
        reference.scatter(weights, reference_layout, rows.float(), expected)
        assert_close(actual, expected, SUM, "weight gradient")
        scattered = torch.zeros(n_latents, D_MODEL, device="cuda")
        triton.scatter(weights, layout, rows, scattered)
        assert_close(scattered, expected, SUM, "scatter")


def test_dense_products(z):
    W, grad = normal(N_LATENTS, D_MODEL, seed=1, size=0.03), normal(N_TOKENS, D_MODEL, seed=2)
    factor = torch.tensor(0.7, device="cuda")

    def gradient():
        bias = torch.zeros(N_LATENTS, device="cuda")
        fired = torch.zeros(N_LATENTS, dtype=torch.int64, device="cuda")
        return triton.masked_gradient(grad, W, z, 0.3, factor, 0.1, bias, fired), bias, fired

    out, bias, fired = twice(gradient)
    code = z.float()
    expected = grad.float() @ W.float().T + 0.3 * (code - code.view(-1, 2, N_LATENTS).flip(1).view_as(code))
    expected += 0.7 * 2 * 0.01 * code / (N_LATENTS * (code.square() + 0.01).square())
    expected *= z != 0
    assert_close(out, expected, 4 * ROUNDED)  # relative to an RMS that is small because 19 of 20 entries are 0
    assert_close(bias, out.double().sum(0), SUM)
    assert torch.equal(fired, (z != 0).sum(0))
    assert_close(twice(lambda: triton.decode_dense(z, W)), code @ W.float(), SUM, "decode_dense")

    def weights():
        total = torch.ones(N_LATENTS, D_MODEL, device="cuda")
        triton.add_product_(total, z, grad)
        return total

    assert_close(twice(weights), 1 + code.T @ grad.float(), SUM, "add_product_")
    temporal, soft = twice(lambda: triton.code_sums(z, True, 0.1))
    exact = z.double()
    assert_close(temporal, (exact[0::2] - exact[1::2]).square().sum(), SUM)
    assert_close(soft, (exact.square() / (exact.square() + 0.01)).sum() / N_LATENTS, SUM)


@pytest.mark.parametrize("way", ["by group", "by way of x_mod"])
def test_encoder_gradients(way, z, monkeypatch):
    # The package's attribute of this name is the function.
    module = import_module("tide_kernels.triton.encoder_gradients")
    monkeypatch.setattr(module, "encoder_gradients_pay", lambda *_: way == "by group")
    x, W = normal(N_TOKENS, D_MODEL, seed=1), normal(N_LATENTS, D_MODEL, seed=2, size=0.03)
    scale, shift = normal(GROUPS, D_MODEL, seed=3, size=0.3), normal(GROUPS, D_MODEL, seed=4, size=0.3)
    group = torch.arange(N_TOKENS, device="cuda") * 7 % GROUPS
    x_mod = triton.modulate(x, scale, shift, group, False, torch.bfloat16)

    def gradients():
        sums = [torch.zeros(rows, D_MODEL, device="cuda") for rows in (N_LATENTS, GROUPS, GROUPS)]
        triton.encoder_gradients(z, x, x_mod, scale, shift, group, False, W, *sums)
        return tuple(sums)

    out = twice(gradients)
    # One way multiplies by x_mod as the encoder read it, in bfloat16; the other by x, and modulates the sums.
    exact = reference.modulate(x.float(), scale.float(), shift.float(), group, False, torch.float32)
    inputs = exact if way == "by group" else x_mod.float()
    grad_x_mod = z.float() @ W.float()
    assert_close(out[0], z.float().T @ inputs, SUM, "W_enc")
    by_group = torch.zeros(GROUPS, D_MODEL, device="cuda")
    assert_close(out[1], by_group.index_add(0, group, grad_x_mod * x.float()), SUM, "scale")
    assert_close(out[2], by_group.index_add(0, group, grad_x_mod), SUM, "shift")


@pytest.mark.parametrize("k", [32, K])
def test_encode_is_the_split_path_up_to_rounding(k):
    x, W = normal(N_TOKENS, D_MODEL, seed=1), normal(N_LATENTS, D_MODEL, seed=2, size=0.03)
    scale, shift = normal(GROUPS, D_MODEL, seed=3, size=0.3), normal(GROUPS, D_MODEL, seed=4, size=0.3)
    group, bias = torch.arange(N_TOKENS, device="cuda") % GROUPS, normal(N_LATENTS, seed=5, size=0.1)
    values, indices = twice(lambda: triton.encode(x, scale, shift, group, True, W, bias, k))
    x_mod = triton.modulate(x, scale, shift, group, True, torch.bfloat16)
    pre = triton.pre_activations(x_mod, W, bias)
    expected_values, expected_indices = triton.select(pre, k)
    assert bool((indices.diff(dim=1) > 0).all())
    # The same latents, except for values near the threshold whose products round differently.
    z = dense(values, indices, N_LATENTS)
    expected = dense(expected_values, expected_indices, N_LATENTS)
    assert float(((z != 0) != (expected != 0)).float().sum() / (expected != 0).sum()) < 0.02
    both = (z != 0) & (expected != 0)
    # Sums in two orders differ by far less than a unit in the last of bfloat16's 8 bits, to which both are rounded: by
    # one unit at most, which is at most 2^-7 of the value.
    torch.testing.assert_close(z[both], expected[both], rtol=2**-7, atol=0)


def test_encode_is_exact_where_products_are():
    generator = torch.Generator("cuda").manual_seed(0)
    x, W = (torch.randint(-2, 3, (n, 64), generator=generator, device="cuda").bfloat16() for n in (1000, 5000))
    x[10, 3] = torch.nan
    values, indices = triton.encode(x, None, None, None, False, W, None, 100)
    expected = triton.select(triton.pre_activations(x, W, None), 100)
    assert torch.equal(indices, expected[1])
    assert torch.equal(values.nan_to_num(77.0), expected[0].nan_to_num(77.0))


def test_rows():
    x, x_hat, bias = (
        normal(N_TOKENS, D_MODEL, seed=1),
        normal(N_TOKENS, D_MODEL, seed=2).float(),
        normal(D_MODEL, seed=3),
    )
    squared, distance, grad, error = twice(
        lambda: triton.reconstruction_loss(x, x_hat, bias, 0.7, 0.3, torch.bfloat16, True)
    )
    rebuilt = x_hat.double() + bias.double()
    want = rebuilt - x.double()
    cosine = torch.nn.functional.cosine_similarity(x.double(), rebuilt, dim=1)
    assert_close(error, want, 1e-6)
    assert_close(squared, want.square().sum(), SUM)
    assert_close(distance, (1 - cosine).sum(), SUM)
    norms = x.double().norm(dim=1, keepdim=True) * rebuilt.norm(dim=1, keepdim=True)
    slope = rebuilt * (cosine[:, None] / rebuilt.square().sum(1, keepdim=True)) - x.double() / norms
    assert_close(grad, 0.7 * want + 0.3 * slope, ROUNDED)
    normed = twice(lambda: triton.modulate(x, None, None, None, True, torch.bfloat16))
    assert_close(normed, torch.nn.functional.layer_norm(x.double(), (D_MODEL,), eps=1e-6), ROUNDED)


ALL_TERMS = LossWeights(mse=1.0, cosine=1.0, temporal=0.1, sparsity=10.0, auxk=0.1)


def step_options(n_latents, regime):
    dead = torch.arange(n_latents, device="cuda") % 16 == 0
    options = {"weights": ALL_TERMS, "paired": True, "dead": dead, "k_aux": 64}
    return {**options, "backend": "triton", "regime": regime}


def run_step(p, options):
    terms = tide_loss(**p.arguments(), **options)
    return [terms.total.detach(), *torch.autograd.grad(terms.total, list(p.parameters().values()))]


@pytest.mark.parametrize(("k", "regime"), [(922, "dense"), (64, "sparse")])
def test_the_step_repeats_its_bits_and_never_waits_for_the_device(k, regime):
    p = random_problem(4096, 1152, 18432, k, groups=16, dtype=torch.bfloat16, device="cuda")
    options = step_options(18432, regime)
    run_step(p, options)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        runs = [run_step(p, options) for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("regime", ["dense", "sparse"])
def test_a_graph_of_the_step_gives_what_the_step_gives(regime):
    p = random_problem(512, 256, 2048, 64, groups=4, dtype=torch.bfloat16, device="cuda")
    options = step_options(2048, regime)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run_step(p, options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_step(p, options)
    p.x.copy_(torch.randn_like(p.x))
    graph.replay()
    expected = run_step(p, options)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_memory_is_set_by_the_chunk():
    p = random_problem(16384, 256, 18432, 922, dtype=torch.bfloat16, device="cuda", modulated=False)
    peaks = []
    for chunk in (2048, 4096):
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        tide_loss(**p.arguments(), chunk=chunk, backend="triton", regime="dense").total.backward()
        peaks.append(torch.cuda.max_memory_allocated() - held)
        for parameter in p.parameters().values():
            parameter.grad = None
    one_chunk = 2048 * 18432 * 2
    assert peaks[0] < 16384 * 18432 * 2  # less than the pre-activations of all tokens
    assert 0.5 * one_chunk < peaks[1] - peaks[0] < 6 * one_chunk
