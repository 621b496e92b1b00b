"""The tokens of a step, a chunk at a time."""

import pytest
import torch

from tide_kernels import LossOptions
from tide_kernels.batch import Batch, overflowing
from tide_kernels.dispatch import choose
from tide_kernels.options import LossArguments, Parameters
from tide_kernels.testing import random_problem


def batch(chunk, capacity=None, n_tokens=7):
    p = random_problem(n_tokens, 4, 10, 2, groups=3, requires_grad=False)
    parameters = Parameters(p.W_enc, p.b_enc, p.W_dec, p.b_dec, p.scale, p.shift)
    options = LossOptions(k=2, chunk=chunk, capacity=capacity)
    choice = choose("reference", "sparse", device=p.x.device, dtype=p.x.dtype, n_latents=10, k=2)
    return p, Batch(LossArguments(p.x, parameters, p.group, None, p.x.dtype, options), choice)


@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_chunks_are_all_tokens_in_their_order(chunk):
    p, tokens = batch(chunk)
    parts = [tokens.tokens(start) for start in tokens.starts]
    assert max(len(part.x) for part in parts) == min(chunk, 7)
    assert torch.equal(torch.cat([part.x for part in parts]), p.x)
    x_mod = p.x * (1 + p.scale[p.group]) + p.shift[p.group]
    assert torch.allclose(torch.cat([part.x_mod for part in parts]), x_mod)


@pytest.mark.parametrize(("most", "rows"), [(7, [0, 1, 2, 3, 4, 5, 6]), (3, [1, 4]), (1, [3])])
def test_a_sample_is_evenly_spaced_and_no_larger_than_asked_for(most, rows):
    p, tokens = batch(3)
    assert torch.equal(tokens.sample(most).x, p.x[rows])


@pytest.mark.parametrize("n_tokens", [8, 96, 128, 130, 256, 640])
def test_a_sample_holds_both_tokens_of_pairs_alike(n_tokens):
    """One of them, the noisier one, may have larger pre-activations throughout."""
    _, tokens = batch(20, n_tokens=n_tokens)
    tokens.x = torch.arange(n_tokens)[:, None].expand(-1, 4).double()
    rows = tokens.sample(n_tokens // 2).x[:, 0].long()
    assert 2 < len(rows) <= n_tokens // 2
    assert abs(int((rows % 2 == 0).sum()) - int((rows % 2 == 1).sum())) <= 1


def test_a_code_on_a_cpu_has_room_for_its_longest_row():
    _, tokens = batch(7, capacity=1)
    chunk = tokens.tokens(0)
    pre = tokens.pre_activations(chunk)
    values, indices, count = tokens.above(chunk, pre, torch.zeros(1, 10, dtype=pre.dtype), None)
    assert values.shape[1] == int(count.max()) > 1
    assert torch.equal(count, (pre > 0).sum(1))
    assert torch.equal((indices >= 0).sum(1), count)


def test_rows_overflow_beyond_their_places():
    assert overflowing(torch.tensor([0, 3, 4, 5, 9]), 4).item() == 2
