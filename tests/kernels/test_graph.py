"""The captured loss: when it captures and replays, with graphs that record a call; on a GPU, its bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch

from tide_kernels import LossTerms, LossWeights, Ranks, tide_loss
from tide_kernels.graph import COUNTED, INPUTS, KEPT, PATIENCE, TABLES, CudaGraphs, GraphedLoss

N_TOKENS, D, N, K = 64, 8, 32, 4
WEIGHTS = LossWeights(1.0, 0.5, 1e-2, 0.1, 0.1)


class Recorded:
    """Graphs that run the captured call again. As on a GPU, its memory stays where it was, and all graphs share it: a
    replay leaves nothing of the others' terms."""

    def __init__(self) -> None:
        self.warm = self.captures = self.replays = 0
        self.terms: list[torch.Tensor] = []

    def warm_up(self, work):
        self.warm += 1
        return work()

    def capture(self, work):
        self.captures += 1
        terms = [torch.empty(()) for _ in LossTerms._fields]
        terms[5] = torch.empty(N, dtype=torch.int64)
        terms[-1] = torch.empty((), dtype=torch.int64)
        self.terms += terms

        def replay() -> None:
            self.replays += 1
            for term in self.terms:
                term.fill_(-77)
            for room, term in zip(terms, work(), strict=True):
                room.copy_(term)

        return replay, LossTerms(*terms)


class Failing(Recorded):
    """Fails after the first ``good`` captures."""

    def __init__(self, good: int = 0) -> None:
        super().__init__()
        self.good = good

    def capture(self, work):
        if self.captures == self.good:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return super().capture(work)


class Step:
    """The arguments of a step, by the number of the call."""

    def __init__(self, device: str = "cpu", activation: str = "topk") -> None:
        generator = torch.Generator().manual_seed(0)
        self.device = device
        self.activation, _, given = activation.partition(" with ")
        self.thresholds = bool(given) or self.activation == "jumprelu"
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
            "target": torch.randn(n_tokens, D, generator=generator),
            "scale": torch.randn(groups, D, generator=generator),
            "shift": torch.randn(groups, D, generator=generator),
            "group": torch.randint(0, groups, (n_tokens,), generator=generator),
            "dead": torch.rand(N, generator=generator) > 0.5,
        }
        if self.thresholds:
            inputs["threshold"] = torch.rand(groups, N, generator=generator) + 0.1
        return {name: each.to(self.device) for name, each in inputs.items()}

    def __call__(self, loss, inputs: dict, k: int = K, start: float | None = None):
        """The terms and all gradients of one call, from zeros; if they start elsewhere, from what must be replaced."""
        held = 0.0 if start is None else torch.nan
        tables = {name: torch.full_like(inputs[name], held) for name in TABLES if name in inputs}
        for gradient in self.gradients.values():
            gradient.fill_(held)
        options = {"k": k, "k_aux": 4, "paired": True, "weights": WEIGHTS, "start": start}
        options |= {"activation": self.activation, **({"bandwidth": 0.5} if "threshold" in inputs else {})}
        terms = loss(gradients={**self.gradients, **tables}, **self.weights, **inputs, **options)
        return [each.clone() for each in (*terms, *self.gradients.values(), *tables.values())]


def check(step: Step, loss: Callable[..., LossTerms], inputs: dict, k: int = K, start: float | None = None) -> None:
    expected = step(tide_loss, inputs, k, start)
    for number, (got, each) in enumerate(zip(step(loss, inputs, k, start), expected, strict=True)):
        assert torch.equal(got, each), number


def test_equal_calls_are_captured_once_and_replayed():
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE + 6):
        check(step, loss, step.inputs(number))
    assert (graphs.warm, graphs.captures, graphs.replays) == (1, 1, 5)


def test_calls_with_ranks_are_never_captured():
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE + 2):
        check(step, partial(loss, ranks=Ranks()), step.inputs(number, groups=3))
    assert (graphs.captures, graphs.replays) == (0, 0)


def test_a_start_replaces_what_gradients_hold():
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE + 3):
        check(step, loss, step.inputs(number, groups=3), start=0.5)
    assert graphs.replays == 2


@pytest.mark.parametrize("groups", [[4, 3, 4, 3], [5, 8, 6, 7], [1, 1, 1, 1]], ids=["at most 4", "5 to 8", "one"])
def test_the_number_of_groups_may_change(groups):
    """Up to the next power of two, for which all calls compute."""
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE + 8):
        check(step, loss, step.inputs(number, groups[number % 4]))
    assert graphs.captures == 1
    assert graphs.replays == 7


@pytest.mark.parametrize("activation", ["jumprelu", "batch_topk"])
@pytest.mark.parametrize("shape", [(), (N,), (3, N)], ids=["a number", "of each latent", "of each group and latent"])
def test_thresholds_are_copied_in_and_their_gradient_out(shape, activation):
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE + 4):
        inputs = step.inputs(number, groups=3)
        inputs["threshold"] = torch.rand(shape, generator=torch.Generator().manual_seed(number)) + 0.1
        found = []
        for run in (tide_loss, loss):
            buffers = {"threshold": torch.ones(shape)}
            options = {"k": K, "activation": activation, "weights": WEIGHTS._replace(auxk=0.0), "paired": True}
            terms = run(**step.weights, **inputs, **options, gradients=buffers)
            found.append([each.clone() for each in (*terms, *buffers.values())])
        assert all(torch.equal(got, each) for got, each in zip(*found, strict=True))
    assert graphs.replays == 3


@pytest.mark.parametrize("change", ["k", "tokens", "groups", "weights elsewhere", "dtype"])
def test_calls_of_another_kind_leave_the_graph_and_get_one_of_their_own(change):
    """Evaluation calls between the steps of a training, for example."""
    graphs, step, other = Recorded(), Step(), Step()
    loss = GraphedLoss(lambda: graphs)
    k, options = K, {}
    if change == "k":
        k = K + 1
    elif change == "tokens":
        options = {"n_tokens": N_TOKENS - 2}
    elif change == "groups":
        options = {"groups": 5}
    if change != "weights elsewhere":
        other = step

    def inputs(number):
        found = other.inputs(number, **options)
        return {**found, "x": found["x"].double()} if change == "dtype" else found

    for number in range(PATIENCE + 2):
        check(step, loss, step.inputs(number))
    assert graphs.replays == 1
    for number in range(PATIENCE):
        check(other, loss, inputs(100 + number), k)
        check(step, loss, step.inputs(number))
    assert (graphs.captures, graphs.replays) == (1, PATIENCE + 1)
    check(other, loss, inputs(99), k)
    for number in range(3):
        check(step, loss, step.inputs(number))
        check(other, loss, inputs(200 + number), k)
    assert (graphs.captures, graphs.replays) == (2, PATIENCE + 7)


def test_two_kinds_in_alternation_are_both_replayed_and_share_their_inputs_memory():
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(2 * PATIENCE + 12):
        check(step, loss, step.inputs(number), K + number % 2)
    assert (graphs.warm, graphs.captures, graphs.replays) == (2, 2, 10)
    first, second = loss._captured.values()
    assert set(first.inputs) == set(INPUTS) - {"threshold"}
    assert all(first.inputs[name] is second.inputs[name] for name in first.inputs)


def capture(step: Step, loss: GraphedLoss, k: int) -> None:
    for number in range(PATIENCE + 1):
        check(step, loss, step.inputs(number), k)


def test_the_graph_that_was_not_called_for_longest_is_dropped():
    """And is captured again no sooner than any other, so that too many kinds do not capture at each step."""
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for k in range(1, KEPT + 1):
        capture(step, loss, k)
    check(step, loss, step.inputs(0), 1)
    assert (graphs.captures, graphs.replays) == (KEPT, 1)
    capture(step, loss, KEPT + 1)  # drops that of 2
    assert len(loss._captured) == KEPT
    for k in (1, *range(3, KEPT + 2)):
        check(step, loss, step.inputs(k), k)
    assert (graphs.captures, graphs.replays) == (KEPT + 1, KEPT + 1)
    capture(step, loss, 2)
    assert (graphs.captures, graphs.replays) == (KEPT + 2, KEPT + 1)


def test_the_counted_kinds_are_bounded():
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    for number in range(PATIENCE):
        check(step, loss, step.inputs(number))
    for number in range(COUNTED):
        check(step, loss, step.inputs(number, n_tokens=N_TOKENS + 2 + 2 * number))
    assert len(loss._seen) == COUNTED
    check(step, loss, step.inputs(0))
    assert graphs.captures == 0


def test_weights_that_move_are_never_read_where_they_were():
    graphs, step = Recorded(), Step()
    loss = GraphedLoss(lambda: graphs)
    capture(step, loss, K)
    before = dict(step.weights)
    for name in step.weights:
        step.weights[name] = before[name].clone()
        before[name].fill_(torch.nan)
        check(step, loss, step.inputs(1))
    assert (graphs.captures, graphs.replays) == (1, 0)
    for name, value in step.weights.items():
        before[name].copy_(value)
    step.weights = before  # as they were: their graph serves again
    check(step, loss, step.inputs(2))
    assert (graphs.captures, graphs.replays) == (1, 1)


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


def test_where_a_later_capture_fails_the_graphs_before_it_serve():
    graphs, step = Failing(good=1), Step()
    loss = GraphedLoss(lambda: graphs)
    capture(step, loss, K)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        capture(step, loss, K + 1)
    for number in range(PATIENCE + 2):
        check(step, loss, step.inputs(number))
        check(step, loss, step.inputs(number), K + 1)
    assert (graphs.warm, graphs.captures, graphs.replays) == (2, 1, PATIENCE + 2)


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")(test))


@on_gpu
@pytest.mark.parametrize("bucket", [None, 16], ids=["masked", "bucket"])
@pytest.mark.parametrize("regime", ["sparse", "dense"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16, whose casts of weights are captured"])
@pytest.mark.parametrize("activation", ["topk", "batch_topk", "batch_topk with thresholds", "jumprelu"])
def test_a_replay_has_the_bits_of_the_call_it_replaces(activation, bucket, regime, half):
    """On a GPU, with groups that fill the graph's tables."""
    graphs = CudaGraphs()
    loss, step = GraphedLoss(lambda: graphs), Step("cuda", activation)

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
    assert len(loss._captured) == 1


@on_gpu
def test_graphs_in_alternation_share_their_memory_and_keep_their_bits():
    """Of which each replay overwrites what another has left there."""
    graphs = CudaGraphs()
    loss, step = GraphedLoss(lambda: graphs), Step("cuda")
    for number in range(2 * PATIENCE + 12):
        inputs, bucket = step.inputs(number), (4, 16)[number % 2]
        expected = step(partial(tide_loss, dead_bucket=bucket), inputs)
        for place, (got, each) in enumerate(
            zip(step(partial(loss, dead_bucket=bucket), inputs), expected, strict=True)
        ):
            assert torch.equal(got, each), place
    assert len(loss._captured) == 2
    assert any(tuple(segment["segment_pool_id"]) == tuple(graphs.pool) for segment in torch.cuda.memory_snapshot())


@on_gpu
def test_a_capture_that_cuda_refuses_leaves_streams_and_allocator_as_they_were():
    total, graphs, side = torch.ones(4, device="cuda"), CudaGraphs(), torch.cuda.Stream()
    with pytest.raises(RuntimeError):
        graphs.capture(lambda: total.sum().item())
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    active = torch.cuda.memory_stats()["active_bytes.all.current"]
    used_twice = torch.ones(2**20, device="cuda")
    used_twice.record_stream(side)
    del used_twice
    torch.cuda.synchronize()
    del total
    total = torch.ones(4, device="cuda")  # now the allocator looks which streams are done
    assert torch.cuda.memory_stats()["active_bytes.all.current"] == active
    replay, _ = CudaGraphs().capture(lambda: total.mul_(2))
    replay()
    assert total.tolist() == [2.0] * 4
