"""The captured loss: when it captures and replays, with graphs that record a call; on a GPU, its bits."""

from __future__ import annotations

import warnings

import pytest
import torch

from tide_kernels import LossTerms, LossWeights, tide_loss
from tide_kernels.graph import PATIENCE, CudaGraphs, GraphedLoss

N_TOKENS, D, N, K = 64, 8, 32, 4
WEIGHTS = LossWeights(1.0, 0.5, 1e-2, 0.1, 0.1)


class Recorded:
    """Graphs that run the captured call again. As on a GPU, its memory stays where it was."""

    def __init__(self) -> None:
        self.warm = self.captures = self.replays = 0

    def warm_up(self, work):
        self.warm += 1
        return work()

    def capture(self, work):
        self.captures += 1
        terms = [torch.empty(()) for _ in range(7)]
        terms[5] = torch.empty(N, dtype=torch.int64)

        def replay() -> None:
            self.replays += 1
            for room, term in zip(terms, work(), strict=True):
                room.copy_(term)

        return replay, LossTerms(*terms)


class Failing(Recorded):
    def capture(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


class Step:
    """The arguments of a step, by the number of the call."""

    def __init__(self, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        self.device = device
        self.weights = {
            "W_enc": torch.randn(N, D, generator=generator), "b_enc": torch.zeros(N),
            "W_dec": torch.randn(N, D, generator=generator), "b_dec": torch.zeros(D),
        }  # fmt: skip
        self.weights = {name: each.to(device) for name, each in self.weights.items()}
        self.gradients = {name: torch.zeros_like(each) for name, each in self.weights.items()}

    def inputs(self, number: int, groups: int = 4, n_tokens: int = N_TOKENS) -> dict:
        generator = torch.Generator().manual_seed(number)
        inputs = {
            "x": torch.randn(n_tokens, D, generator=generator),
            "scale": torch.randn(groups, D, generator=generator),
            "shift": torch.randn(groups, D, generator=generator),
            "group": torch.randint(0, groups, (n_tokens,), generator=generator),
            "dead": torch.rand(N, generator=generator) > 0.5,
        }
        return {name: each.to(self.device) for name, each in inputs.items()}

    def __call__(self, loss, inputs: dict, k: int = K):
        """The terms and all gradients of one call, from zeros."""
        tables = {name: torch.zeros_like(inputs[name]) for name in ("scale", "shift")}
        for gradient in self.gradients.values():
            gradient.zero_()
        options = {"k": k, "k_aux": 4, "paired": True, "weights": WEIGHTS}
        terms = loss(gradients={**self.gradients, **tables}, **self.weights, **inputs, **options)
        return [each.clone() for each in (*terms, *self.gradients.values(), *tables.values())]


def check(step: Step, loss: GraphedLoss, inputs: dict, k: int = K) -> None:
    expected = step(tide_loss, inputs, k)
    for number, (got, each) in enumerate(zip(step(loss, inputs, k), expected, strict=True)):
        assert torch.equal(got, each), number


def test_equal_calls_are_captured_once_and_replayed():
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE + 6):
        check(step, loss, step.inputs(number))
    assert (graphs.warm, graphs.captures, graphs.replays) == (1, 1, 5)


@pytest.mark.parametrize("groups", [[4, 3, 4, 3], [5, 8, 6, 7], [1, 1, 1, 1]], ids=["at most 4", "5 to 8", "one"])
def test_the_number_of_groups_may_change(groups):
    """Up to the next power of two, for which all calls compute."""
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE + 8):
        check(step, loss, step.inputs(number, groups[number % 4]))
    assert graphs.captures == 1
    assert graphs.replays == 7


@pytest.mark.parametrize("change", ["k", "tokens", "groups", "memory", "no dead"])
def test_a_call_of_another_kind_drops_the_graph(change):
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE + 2):
        check(step, loss, step.inputs(number))
    assert graphs.replays == 1
    inputs, k = step.inputs(99), K
    if change == "k":
        k = K + 1
    elif change == "tokens":
        inputs = step.inputs(99, n_tokens=N_TOKENS - 2)
    elif change == "groups":
        inputs = step.inputs(99, 5)
    elif change == "no dead":
        inputs["dead"] = torch.zeros(N, dtype=torch.bool)
        inputs["x"] = inputs["x"].double()
    else:
        step.weights["W_enc"] = step.weights["W_enc"].clone()
    check(step, loss, inputs, k)
    assert graphs.replays == 1
    for _ in range(PATIENCE + 2):
        check(step, loss, inputs, k)
    assert (graphs.captures, graphs.replays) == (2, 3)


def test_a_k_that_changes_all_the_time_is_never_captured():
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(3 * PATIENCE):
        check(step, loss, step.inputs(number), 2 + number // (PATIENCE - 1))
    assert graphs.captures == 0


def test_where_capturing_fails_a_warning_says_so_once():
    graphs, step = Failing(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE):
        check(step, loss, step.inputs(number))
    with pytest.warns(UserWarning, match=r"without a CUDA graph: .* \(operation not permitted .* capturing\)$"):
        check(step, loss, step.inputs(99))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3 * PATIENCE):
            check(step, loss, step.inputs(number))
    assert graphs.warm == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("bucket", [None, 16], ids=["masked", "bucket"])
@pytest.mark.parametrize("regime", ["sparse", "dense"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16, whose casts of weights are captured"])
def test_a_replay_has_the_bits_of_the_call_it_replaces(bucket, regime, half):
    """On a GPU, with groups that fill the graph's tables."""
    graphs = CudaGraphs()
    loss, step = GraphedLoss(lambda: graphs), Step("cuda")

    def call(function):
        def under_autocast(**arguments):
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                return function(**arguments, dead_bucket=bucket, regime=regime)

        return under_autocast

    for number in range(PATIENCE + 8):
        inputs = step.inputs(number)
        expected = step(call(tide_loss), inputs)
        for place, (got, each) in enumerate(zip(step(call(loss), inputs), expected, strict=True)):
            assert torch.equal(got, each), place
    assert loss._captured is not None
