"""The reference on a GPU: equal to itself on the CPU, and the same bits from run to run."""

import pytest
import torch

from tide_kernels import LossWeights, decode, reference, tide_loss
from tide_kernels.testing import adversarial_rows, assert_close, random_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_select_keeps_the_contract(dtype):
    rows = torch.stack(list(adversarial_rows(300, dtype).values()))
    expected = reference.select(rows, 15)
    values, indices = reference.select(rows.cuda(), 15)
    assert torch.equal(indices.cpu(), expected[1])
    assert torch.equal(values.cpu().nan_to_num(1.0), expected[0].nan_to_num(1.0))


def test_the_loss_equals_that_of_the_cpu_and_repeats_its_bits(regime):
    weights = LossWeights(mse=1.0, cosine=1.0, temporal=0.1, sparsity=10.0, auxk=0.1)
    dead = torch.arange(300) % 4 == 0
    runs = []
    for device in ("cpu", "cuda", "cuda"):
        p = random_problem(64, 16, 300, 15, groups=7, device=device)
        options = {"weights": weights, "paired": True, "dead": dead.to(device), "k_aux": 5, "chunk": 20}
        terms = tide_loss(**p.arguments(), regime=regime, **options)
        terms.total.backward()
        runs.append([*terms, *(t.grad for t in p.parameters().values())])
    for cpu, first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)
        assert_close(first, cpu, 1e-11)


def test_indices_out_of_range_are_unused_places(regime):
    p = random_problem(2, 4, 10, 2, device="cuda")
    values = torch.ones(2, 2, dtype=torch.float64, device="cuda")
    indices = torch.tensor([[3, 10], [-5, 2**31 - 1]], device="cuda", dtype=torch.int32)
    x_hat = decode(values, indices, p.W_dec, regime=regime)
    assert_close(x_hat, torch.stack([p.W_dec[3], torch.zeros_like(p.W_dec[3])]), 1e-12)
