"""A whole step of the threshold activations, in float32, against the plain formula in float64."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import LossWeights, tide_loss, triton
from tide_kernels.testing import assert_close, random_problem

N, D, LATENTS, K = 12, 20, 90, 6
# Sums of a few hundred products in float32. The gradient of a scale adds up terms of both signs.
TOLERANCE = 1e-4


def problem(dtype, device):
    p = random_problem(N, D, LATENTS, K, groups=3, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(1)
    threshold = torch.rand(3, LATENTS, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
    return p, threshold


def step(loss, dtype, device, activation, **options):
    p, threshold = problem(dtype, device)
    dead = torch.arange(LATENTS, device=device) % 3 == 0
    weights = LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=2.0, auxk=0.4)
    options |= {"weights": weights, "paired": True, "dead": dead, "k_aux": 4}
    parameters = p.parameters()
    activation, _, given = activation.partition(" with ")
    options |= {"activation": activation}
    if given or activation == "jumprelu":
        options |= {"threshold": threshold + 0.1 if given else threshold, "bandwidth": 0.9}
        parameters = parameters | {"threshold": threshold}
    terms = loss(**p.arguments(), **options)
    gradients = torch.autograd.grad(terms.total, list(parameters.values()), materialize_grads=True)
    return terms, dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("regime", ["sparse", "dense"])
@pytest.mark.parametrize("activation", ["jumprelu", "batch_topk", "batch_topk with thresholds"])
def test_agrees_with_the_plain_formula(activation, regime, device):
    expected, wanted = step(naive.tide_loss, torch.float64, device, activation)
    options = {"backend": "triton", "regime": regime, "capacity": LATENTS, "chunk": 8}
    terms, gradients = step(tide_loss, torch.float32, device, activation, **options)
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "total"):
        assert_close(getattr(terms, name), getattr(expected, name), TOLERANCE, name)
    assert torch.equal(terms.fired, expected.fired)
    for name, gradient in gradients.items():
        assert_close(gradient, wanted[name], TOLERANCE, f"gradient of {name}")


def test_a_pair_of_which_one_row_holds_a_latent_with_a_value_of_0(device):
    values = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]], device=device)
    indices = torch.tensor([[1, 4, -1], [1, 4, -1]], dtype=torch.int32, device=device)
    total, differences = triton.pair_differences(values, indices)
    assert float(total) == 13.0
    assert differences.tolist() == [[-3.0, 2.0, 0.0], [3.0, -2.0, 0.0]]
