"""The number of threads does not change any bit of a training step, except in PyTorch's own matrix product."""

import pytest
import torch

from tide_kernels import LossWeights, native, tide_loss
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
