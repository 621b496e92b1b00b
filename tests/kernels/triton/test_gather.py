"""`gather` and `sampled` against the reference in float64."""

import pytest
import torch

from tide_kernels import reference, triton
from tide_kernels.testing import assert_close
from tide_kernels.triton import launch

# Sums are in float32 over operands that are exact in it: some hundred terms, each rounded once.
TOLERANCE = 1e-5

DTYPES = [torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather(sizes, dtype, code, normal):
    n_tokens, k, n_latents, d_model = sizes
    values, indices = code(n_tokens, k, n_latents, dtype)
    W = normal(n_latents, d_model, dtype=dtype)
    expected = reference.gather(values.double(), indices, W.double())
    assert_close(triton.gather(values, indices, W), expected, TOLERANCE)
    out = normal(n_tokens, d_model)
    expected += out
    triton.add_gather_(out, values, indices, W)
    assert_close(out, expected, TOLERANCE)


LAST = [-1, 0, 3, 4, 130, 127, 128, 171, 172, 299]  # used place of each row


@pytest.mark.parametrize("between", ["used", "unused"])
def test_rows_end_after_their_last_used_place(between, normal, device, generator):
    """Codes with more places than are looked at together."""
    last, k = torch.tensor(LAST, device=device)[:, None], 300
    place = torch.arange(k, device=device)
    used = place <= last if between == "used" else place == last
    latents = torch.randint(50, (len(LAST), k), generator=generator, dtype=torch.int32).to(device)
    indices = latents.masked_fill(~used, -1)
    values = normal(len(LAST), k).masked_fill(~used, torch.nan)
    W = normal(50, 70)
    expected = reference.gather(values.double(), indices, W.double())
    whole = triton.gather(values, indices, W)
    assert_close(whole, expected, TOLERANCE)
    # Sums have the same order whatever follows: the bits are those of a code that has no unused places at its end.
    for row, end in enumerate(LAST):
        if end >= 0:
            short = triton.gather(values[row : row + 1, : end + 1], indices[row : row + 1, : end + 1], W)
            assert torch.equal(whole[row : row + 1], short)


@pytest.mark.skipif(not launch.INTERPRETED, reason="counts loads in the interpreter")
def test_places_after_the_last_used_one_cost_nothing(normal, monkeypatch):
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    loads, load = [], interpreter.InterpreterBuilder.create_masked_load

    def counted(self, *arguments):
        loads.append(arguments)
        return load(self, *arguments)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", counted)
    W = normal(50, 60)

    def loads_of(k):
        indices = torch.full((1, k), -1, dtype=torch.int32)
        indices[:, :10] = torch.arange(10)
        loads.clear()
        triton.gather(normal(1, k), indices, W)
        return len(loads)

    assert loads_of(128) == loads_of(12) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sampled(sizes, dtype, code, normal):
    n_tokens, k, n_latents, d_model = sizes
    _, indices = code(n_tokens, k, n_latents, dtype)
    W, rows = normal(n_latents, d_model, dtype=dtype), normal(n_tokens, d_model, dtype=dtype)
    expected = reference.sampled(rows.double(), W.double(), indices)
    assert_close(triton.sampled(rows, W, indices), expected, TOLERANCE)


def test_infinite_weights_stay_with_their_latent(device):
    W = torch.ones(4, 8, device=device)
    W[0] = torch.inf
    indices = torch.tensor([[-1, 2], [3, -1]], dtype=torch.int32, device=device)
    rows = torch.zeros(2, 8, device=device)
    assert torch.equal(triton.sampled(rows, W, indices), torch.zeros(2, 2, device=device))
    rows[0] = torch.nan
    assert triton.sampled(rows, W, indices).isnan().tolist() == [[False, True], [False, False]]


def test_no_tokens(normal, device):
    values, indices = normal(0, 3), torch.empty(0, 3, dtype=torch.int32, device=device)
    W, rows = normal(7, 20), normal(0, 20)
    assert triton.gather(values, indices, W).shape == (0, 20)
    assert triton.sampled(rows, W, indices).shape == (0, 3)
