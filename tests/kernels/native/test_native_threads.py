"""What the number of threads does not change: every bit of a training step but of PyTorch's own matrix product."""

import pytest
import torch

from tide_kernels import LossWeights, native, tide_loss
from tide_kernels.losses import full_sum
from tide_kernels.testing import random_problem

WEIGHTS = LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4)
COUNTS = (1, 2, 3, 5)


@pytest.fixture
def _products_by_one_thread(monkeypatch, threads):
    product = native.pre_activations

    def by_one(*operands):
        number = torch.get_num_threads()
        threads(1)
        try:
            return product(*operands)
        finally:
            threads(number)

    monkeypatch.setattr(native, "pre_activations", by_one)


@pytest.mark.usefixtures("_products_by_one_thread")
@pytest.mark.parametrize(("n_tokens", "d_model", "n_latents", "k"), [(900, 70, 333, 11), (2048, 17, 64, 5)])
@pytest.mark.parametrize("groups", [None, 3])
def test_a_step_is_the_same_for_any_number_of_threads(threads, n_tokens, d_model, n_latents, k, groups):
    steps = []
    for number in COUNTS:
        threads(number)
        p = random_problem(n_tokens, d_model, n_latents, k, groups=groups, dtype=torch.float32)
        dead = torch.arange(n_latents) % 3 == 0
        options = {"weights": WEIGHTS, "paired": True, "dead": dead, "k_aux": 4, "delta": 1.0, "layer_norm": True}
        terms = tide_loss(**p.arguments(), **options, chunk=512, backend="native", regime="sparse")
        terms.total.backward()
        steps.append([*terms, *(parameter.grad for parameter in p.parameters().values())])
    for step in steps[1:]:
        assert all(torch.equal(a, b) for a, b in zip(step, steps[0], strict=True))


@pytest.mark.parametrize("shape", [(100_000,), (40_000, 3), (7, 9000), (70, 80, 90), (5,), (0,), (0, 4)], ids=str)
def test_a_full_sum_is_the_same_for_any_number_of_threads(threads, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    sums = []
    for number in COUNTS:
        threads(number)
        sums.append(full_sum(values))
    assert all(torch.equal(found, sums[0]) for found in sums)
    # A sum in any order is this close: 2^-24 of the sum of sizes for each of the at most 400 additions in a row.
    exact, size = values.double().sum(), values.double().abs().sum()
    assert abs(float(sums[0]) - float(exact)) <= 400 * 2**-24 * float(size)


def test_pytorchs_own_sum_is_not(threads):
    """Else `full_sum` could go."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    sums = set()
    for number in COUNTS:
        threads(number)
        sums.add(float(values.sum()))
    assert len(sums) > 1
