"""adamw_ against PyTorch's fused AdamW, and norm against float64."""

import pytest
import torch

from tide_kernels import native

EPS = torch.finfo(torch.float32).eps
SHAPES = [(1,), (7,), (16,), (1023,), (1025, 3), (300, 192)]
LRS = [1e-2, 1e-3, 1e-2, 0.0, 1e-2, 3e-3]
OPTIONS = {"betas": (0.9, 0.99), "weight_decay": 0.1, "eps": 1e-8}


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Ours:
    """Parameters, gradients and moments."""

    def __init__(self, start=0.0):
        self.parameters = [normal(shape, i) for i, shape in enumerate(SHAPES)]
        self.gradients, self.exp_avgs, self.exp_avg_sqs = ([torch.zeros(s) for s in SHAPES] for _ in range(3))
        self.steps = [torch.tensor(start) for _ in SHAPES]

    def step(self, number, **options):
        for i, gradient in enumerate(self.gradients):
            gradient.copy_(normal(gradient.shape, 100 * number + i))
        native.adamw_(*self.lists(), LRS, **OPTIONS | options)
        assert all(torch.equal(g, normal(g.shape, 100 * number + i)) for i, g in enumerate(self.gradients))

    def lists(self):
        return self.parameters, self.gradients, self.exp_avgs, self.exp_avg_sqs, self.steps


def torchs(start, n_steps, divisor):
    parameters = [torch.nn.Parameter(normal(shape, i)) for i, shape in enumerate(SHAPES)]
    groups = [{"params": [parameter], "lr": lr} for parameter, lr in zip(parameters, LRS, strict=True)]
    optimizer = torch.optim.AdamW(groups, fused=True, **OPTIONS)
    for parameter in parameters:
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(start), **moments}
    for number in range(n_steps):
        for i, parameter in enumerate(parameters):
            parameter.grad = normal(parameter.shape, 100 * number + i) / divisor
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("divisor", [1.0, 3.7])
@pytest.mark.parametrize("start", [0.0, 1000.0], ids=["first steps", "late steps"])
def test_equals_torchs(start, divisor):
    n_steps = 4
    ours, others = Ours(start), torchs(start, n_steps, divisor)
    for number in range(n_steps):
        ours.step(number, divisor=divisor)
    for p, m, v, step, (q, state) in zip(
        ours.parameters, ours.exp_avgs, ours.exp_avg_sqs, ours.steps, others.state.items(), strict=True
    ):
        # Each step rounds a moment about twice, by at most half an ulp of a gradient or of its square (|g| < 6); and a
        # parameter twice, once its change, of at most ten roundings and at first of at most lr.
        near = n_steps * EPS
        torch.testing.assert_close(m, state["exp_avg"], rtol=0, atol=near * 6 / divisor)
        torch.testing.assert_close(v, state["exp_avg_sq"], rtol=4 * near, atol=0)
        torch.testing.assert_close(p, q.detach(), rtol=2 * near, atol=10 * near * max(LRS) * 10)
        assert float(step) == float(state["step"]) == start + n_steps


def test_the_number_of_threads_changes_no_bit(threads):
    results = []
    for number in (1, 2, 3, 5):
        threads(number)
        ours = Ours()
        ours.step(0, divisor=1.3)
        results.append((native.norm(ours.gradients), [each for each in ours.lists()]))
    for norm, lists in results[1:]:
        assert norm == results[0][0]
        for ours, others in zip(lists, results[0][1], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


def test_autograd_sees_that_parameters_change():
    ours = Ours()
    before = [parameter._version for parameter in ours.parameters]
    ours.step(0)
    assert all(p._version > version for p, version in zip(ours.parameters, before, strict=True))


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(2, 3).double(), "a parameter has to be contiguous float32 of 6 elements"),
        (1, torch.zeros(3, 2).T, "its gradient has to be contiguous float32 of 6 elements"),
        (1, torch.zeros(5), "its gradient has to be contiguous float32 of 6 elements"),
        (3, torch.zeros(7), "its exp_avg_sq has to be contiguous float32 of 6 elements"),
        (4, torch.zeros(2), "its step has to be contiguous float32 of 1 elements"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(place, wrong, message):
    lists = [[torch.zeros(2, 3)] for _ in range(4)] + [[torch.zeros(())]]
    lists[place] = [wrong]
    with pytest.raises(RuntimeError, match=message):
        native.adamw_(*lists, LRS[:1], **OPTIONS)
    with pytest.raises(RuntimeError, match="a gradient, two moments, a step and a learning rate for each parameter"):
        native.adamw_(*lists, [], **OPTIONS)


@pytest.mark.parametrize("known", [0.0, 50.0])
def test_the_norm(known):
    gradients = [normal(shape, i) for i, shape in enumerate([*SHAPES, (3, 0)])]
    exact = (sum(float(each.double().square().sum()) for each in gradients) + known) ** 0.5
    assert native.norm(gradients, known) == pytest.approx(exact, rel=1e-6)
    assert native.norm([], known) == pytest.approx(known**0.5)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_the_norm_of_numbers_that_are_not_finite(bad):
    gradient = normal((300, 192), 0)
    gradient[299, 191] = bad
    assert native.norm([gradient]) == pytest.approx(bad, nan_ok=True)
