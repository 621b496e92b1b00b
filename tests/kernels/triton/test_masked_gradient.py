"""`masked_gradient` against float64, by pointers, by descriptors and by persistent programs."""

import pytest
import torch

from tests.helpers.tolerances import SUMS as TOLERANCE
from tide_kernels import triton
from tide_kernels.testing import assert_close
from tide_kernels.triton import configs
from tide_kernels.triton import launch as launches

DTYPES = [torch.float16, torch.float32]
SHAPES = [
    pytest.param(2, 1, 1, id="one latent of width 1"),
    pytest.param(38, 83, 70, id="tiles that are mostly mask, in all three directions"),
    pytest.param(38, 88, 72, id="the same with rows that descriptors serve"),
    pytest.param(64, 32, 32, id="whole tiles"),
]
SOFT_EPS = 0.1


WAYS = {
    "by pointers": {"tma": 0, "PARTS": 2},
    "by descriptors": {"tma": 1, "PARTS": 2},
    "a tile as a whole": {"tma": 0, "PARTS": 1},
    "persistent": {"persistent": 1, "PARTS": 4},
    "persistent, more programs than tiles": {"persistent": 50, "PARTS": 1},
}


@pytest.fixture
def use(monkeypatch):
    """Changes how the kernel reaches memory, in how many parts it finishes a tile, and who takes which tile."""

    def change(way):
        rules = (rule._replace(config={**rule.config, **WAYS[way]}) for rule in table)
        monkeypatch.setattr(configs, "_TABLE", {**configs._TABLE, "masked_gradient": tuple(rules)})
        configs.lookup.cache_clear()

    table = configs._TABLE["masked_gradient"]
    yield change
    configs.lookup.cache_clear()


@pytest.fixture(params=WAYS)
def way(request, use):
    use(request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", ["plain", "pairs", "soft", "pairs and soft"])
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model"), SHAPES)
def test_masked_gradient(n_tokens, n_latents, d_model, terms, dtype, way, masked, normal, device):
    z, grad, W = masked(n_tokens, n_latents, d_model, dtype)
    pair_factor = 0.3 if "pairs" in terms else 0.0
    soft_factor = torch.tensor(0.7, device=device) if "soft" in terms else None
    bias, fired = normal(n_latents), torch.randint(5, (n_latents,), device=device)
    bias_before, fired_before = bias.double(), fired.clone()
    out = triton.masked_gradient(grad, W, z, pair_factor, soft_factor, SOFT_EPS, bias, fired)

    code = z.double()
    partner = code.view(-1, 2, n_latents).flip(1).reshape_as(code)
    expected = grad.double() @ W.double().T + pair_factor * (code - partner)
    if soft_factor is not None:
        expected += 0.7 * 2 * SOFT_EPS**2 * code / (n_latents * (code.square() + SOFT_EPS**2).square())
    assert out.dtype == dtype
    assert_close(out, expected * (z != 0), TOLERANCE[dtype])
    assert_close(bias, bias_before + out.double().sum(0), 1e-5, "grad_b_enc")
    assert torch.equal(fired, fired_before + (z != 0).sum(0))


def test_masked_gradient_without_sums_and_with_an_odd_number_of_tokens(way, masked):
    z, grad, W = masked(5, 33, 20, torch.float32)
    out = triton.masked_gradient(grad, W, z, 0.0, None, SOFT_EPS, None, None)
    assert_close(out, (grad.double() @ W.double().T) * (z != 0), 1e-5)


def test_nan_is_selected_and_stays_in_its_place(way, masked, device):
    z, grad, W = masked(4, 40, 20, torch.float32)
    z[1, 7] = torch.nan
    fired = torch.zeros(40, dtype=torch.int64, device=device)
    out = triton.masked_gradient(grad, W, z, 0.5, None, SOFT_EPS, None, fired)
    # It also reaches the pair's other row, if that latent is active there.
    shows = torch.zeros(4, 40, dtype=torch.bool, device=device)
    shows[1, 7], shows[0, 7] = True, z[0, 7] != 0
    assert torch.equal(out.isnan(), shows)
    assert torch.equal(fired, (z != 0).sum(0))


@pytest.fixture
def launched(monkeypatch):
    """The grid and the keywords of each launch."""
    seen = []
    run = launches.launch
    monkeypatch.setattr(
        launches, "launch", lambda kernel, grid, *a, **k: (seen.append((grid, k)), run(kernel, grid, *a, **k))
    )
    return seen


@pytest.mark.parametrize("way", ["by descriptors", "persistent"], indirect=True)
@pytest.mark.parametrize(("n_latents", "used"), [(88, True), (83, False)])
def test_descriptors_serve_only_rows_that_are_aligned(n_latents, used, way, masked, launched):
    z, grad, W = masked(6, n_latents, 72, torch.float16)
    triton.masked_gradient(grad, W, z, 0.0, None, SOFT_EPS, None, None)
    ((_, keywords),) = launched
    assert keywords["TMA"] == used
    assert keywords["PERSISTENT"] == (used and way == "persistent")


def test_which_program_takes_which_tile_does_not_change_a_bit(use, masked, device, launched, monkeypatch):
    use("persistent")
    config = launches.config("masked_gradient", torch.empty(0, device=device), 72)
    n_tokens, n_latents = 2 * config["BLOCK_M"] + 6, 2 * config["BLOCK_N"] + 8  # 9 tiles
    z, grad, W = masked(n_tokens, n_latents, 72, torch.float32)
    found = []
    for programs in (1, 2, 4, 9):
        monkeypatch.setattr(launches, "processors", lambda device, programs=programs: programs)
        bias = torch.zeros(n_latents, device=device)
        fired = torch.zeros(n_latents, dtype=torch.int64, device=device)
        found.append((triton.masked_gradient(grad, W, z, 0.3, None, SOFT_EPS, bias, fired), bias, fired))
    assert [grid for grid, _ in launched] == [(1,), (2,), (4,), (9,)]
    for first, *others in zip(*found, strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_no_tokens(way, normal, device):
    z, grad, W = normal(0, 32), normal(0, 20), normal(32, 20)
    bias, fired = normal(32), torch.ones(32, dtype=torch.int64, device=device)
    before = bias.clone(), fired.clone()
    assert triton.masked_gradient(grad, W, z, 0.5, None, SOFT_EPS, bias, fired).shape == (0, 32)
    for after, was in zip((bias, fired), before, strict=True):
        assert torch.equal(after, was)
