"""Several ranks that share a batch get the terms and gradients of one process that has all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist

from tests.helpers import naive
from tests.helpers.layouts import dyadic
from tests.helpers.ranks import run_ranks
from tide_kernels import LossTerms, LossWeights, Ranks, batch_topk, fused, ranks, tide_loss
from tide_kernels.batch import Batch
from tide_kernels.codes import Compact, DenseCode, SparseCode
from tide_kernels.dispatch import choose
from tide_kernels.options import LossArguments, LossOptions, Parameters
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-11  # float64, relative to the RMS
N, D, LATENTS, K, GROUPS = 22, 5, 11, 3, 3
ALL = LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4)
THRESHOLDS: dict[str, tuple[int, ...]] = {"one": (), "each": (LATENTS,), "groups": (GROUPS, LATENTS)}


class Shares(NamedTuple):
    """What the ranks hold: rank i has the ``i // len(latents)``-th share of the tokens and the
    ``i % len(latents)``-th of the latents."""

    tokens: tuple[int, ...]
    latents: tuple[int, ...] = (LATENTS,)

    @property
    def count(self) -> int:
        return len(self.tokens) * len(self.latents)


SHARES = {
    "2 of the tokens, one without": Shares((0, 22)),
    "4 of the tokens, one of one pair and one without": Shares((8, 2, 0, 12)),
    "2 of the latents": Shares((N,), (7, 4)),
    "3 of the latents, one without dead ones": Shares((N,), (1, 2, 8)),
    "2 of the tokens and of the latents": Shares((8, 14), (4, 7)),
}


class Case(NamedTuple):
    """One call of the loss."""

    activation: str = "topk"
    thresholds: str | None = None  # a key of THRESHOLDS
    regime: str = "sparse"
    backend: str = "reference"
    dtype: torch.dtype = torch.float64
    start: float | None = 0.25
    dead: tuple[int, ...] = (0, 3, 6, 9)
    transcodes: bool = False
    more: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = (self.activation, self.thresholds, self.regime, self.backend, str(self.dtype).removeprefix("torch."))
        more = (f"{name}={value}" for name, value in self.more)
        start, dead = "" if self.start is not None else "held", "" if self.dead else "none dead"
        return " ".join(filter(None, (*parts, start, dead, "target" if self.transcodes else "", *more)))


ACTIVATIONS = [
    ("topk", None),
    ("batch_topk", None),
    *(("batch_topk", name) for name in THRESHOLDS if name != "one"),  # the gradient of one for all is 0
    *(("jumprelu", name) for name in THRESHOLDS),
]
CASES = [
    *(Case(*activation, regime) for activation, regime in product(ACTIVATIONS, ("sparse", "dense"))),
    *(Case(*activation, "sparse", "native", torch.float32) for activation in ACTIVATIONS),
    *(Case(*activation, start=None) for activation in (("topk", None), ("jumprelu", "groups"))),
    Case(start=None, backend="native", dtype=torch.float32),
    Case(more=(("chunk", None), ("layer_norm", True))),
    Case(more=(("weights", LossWeights()),)),
    Case(more=(("weights", ALL._replace(sparsity=0.0)), ("dead_bucket", 2))),
    *(Case(*activation, "sparse", "native", torch.float32, dead=()) for activation in ACTIVATIONS),
    *(Case(dtype=torch.float16, regime="dense", dead=dead) for dead in ((), (0, 3, 6, 9))),
    # Without dead latents large gradients begin to travel in the last chunk, which a rank without tokens has not.
    *(Case(*activation, regime, dead=()) for activation, regime in product(ACTIVATIONS, ("sparse", "dense"))),
    Case(transcodes=True),
    Case("jumprelu", "groups", "dense", transcodes=True),
    *(Case("batch_topk", None, more=(("k", k),)) for k in (1, LATENTS)),
]


#: Of ranks that share the tokens alone.
NESTED = [
    Case(*activation, regime, dead=dead, transcodes=regime == "dense", more=(("prefixes", (2, 7)),))
    for activation, regime, dead in product(ACTIVATIONS, ("sparse", "dense"), ((), (0, 3, 6, 9)))
]


class Part(NamedTuple):
    """What a rank holds."""

    rows: slice = slice(None)
    latents: slice = slice(None)
    ranks: Ranks | None = None

    @classmethod
    def of(cls, shares: Shares, ranks: Ranks, n_latents: int = LATENTS) -> Part:
        """This rank's. The last rank has what there are more of ``n_latents``."""
        latents = (*shares.latents[:-1], n_latents - sum(shares.latents[:-1]))
        return cls(_share(shares.tokens, ranks.tokens.number), _share(latents, ranks.latents.number), ranks)


WHOLE = Part()


def _share(sizes: tuple[int, ...], number: int) -> slice:
    return slice(sum(sizes[:number]), sum(sizes[: number + 1]))


def outcome(case: Case, part: Part = WHOLE) -> tuple[LossTerms, dict[str, torch.Tensor]]:
    """Terms and gradients of a case's call with a part of it."""
    p = random_problem(N, D, LATENTS, K, groups=GROUPS, dtype=case.dtype, requires_grad=False)
    parameters = p.parameters()
    if case.thresholds is not None:
        uniform = torch.rand(THRESHOLDS[case.thresholds], generator=torch.Generator().manual_seed(1))
        parameters["threshold"] = (uniform + 0.2).to(case.dtype)
    parameters = {name: _of_latents(name, each, part.latents).contiguous() for name, each in parameters.items()}
    arguments = p.arguments() | parameters | {"x": p.x[part.rows], "group": p.group[part.rows]}
    if case.transcodes:
        arguments["target"] = (p.x.flip(1) * 0.5 + 1)[part.rows]
    dead = torch.isin(torch.arange(LATENTS), torch.tensor(case.dead, dtype=torch.int64))
    options = {"weights": ALL, "paired": True, "dead": dead[part.latents], "k_aux": 2}
    options |= {"s_target": 0.1, "delta": 0.03, "bandwidth": 1.5, "start": case.start, "chunk": 4} | dict(case.more)
    options |= {"activation": case.activation, "regime": case.regime, "backend": case.backend}
    dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    buffers = {name: torch.ones(q.shape, dtype=dtype) for name, q in parameters.items()}
    terms = tide_loss(**arguments | options, gradients=buffers, ranks=part.ranks)
    return terms, buffers


def _of_latents(name: str, table: torch.Tensor, latents: slice) -> torch.Tensor:
    """The part of a parameter, or of what goes by its name, that belongs to some latents."""
    if name == "threshold" and table.dim():
        return table[..., latents]
    return table[latents] if name in ("W_enc", "b_enc", "W_dec", "fired") else table


class TiedCase(NamedTuple):
    """A selection of many equal entries."""

    k: int
    dtype: torch.dtype
    regime: str
    backend: str
    bound: str

    def __str__(self) -> str:
        return f"k={self.k} {str(self.dtype).removeprefix('torch.')} {self.regime} {self.backend} {self.bound}"


#: Where the sampled bound lies. One rank may find too many candidates, and then none may use any.
BOUNDS = ("candidates", "bound too high", "too many candidates on rank 1")
KS = (1, 2, 4, 9)  # 4: of one token some ties stay, on both ranks of the latents, and some do not
TIED_LATENTS = 12
TIED = [
    *(TiedCase(*case, "sparse", "reference", BOUNDS[0]) for case in product(KS, (torch.float64, torch.bfloat16))),
    *(
        TiedCase(k, torch.float32, *where, bound)
        for k, where, bound in product(
            KS, (("sparse", "reference"), ("sparse", "native"), ("dense", "reference")), BOUNDS
        )
    ),
]


def tied_rows(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and weights of small multiples of 1/8, so that products are exact and many tie; each weight occurs twice,
    so that all tie."""
    weights = dyadic(TIED_LATENTS // 2, 2, seed=12, eighths=3, dtype=dtype)
    return dyadic(N, 2, seed=N, eighths=3, dtype=dtype), weights.repeat(2, 1)


def selected(case: TiedCase, part: Part) -> torch.Tensor:
    """z of a rank's own part."""
    x, W = tied_rows(case.dtype)
    W, ranks = W[part.latents], part.ranks
    options = LossOptions(k=case.k, chunk=4, activation="batch_topk")
    arguments = LossArguments(x[part.rows], Parameters(W, None, W, None, None, None), None, None, case.dtype, options)
    device = x.device
    choice = choose(case.backend, case.regime, device=device, dtype=case.dtype, n_latents=len(W), k=case.k)
    with pytest.MonkeyPatch.context() as patch:
        if case.bound == BOUNDS[1]:
            patch.setattr(batch_topk, "sampled_bound", lambda batch: torch.tensor(3.0))
        if case.bound == BOUNDS[2] and dist.get_rank() == 1:
            patch.setattr(batch_topk, "MOST_CANDIDATES", 0)
        selection = batch_topk.batch_topk(Batch(arguments, choice, ranks))
    codes = [code for _, code, _ in selection.chunks(lambda tokens, pre: None)]
    return torch.cat([dense(code, len(W)) for code in codes]) if codes else x.new_zeros(0, len(W))


def dense(code: Any, n_latents: int) -> torch.Tensor:
    if isinstance(code, SparseCode):
        choice = choose("reference", "dense", device=code.values.device, dtype=code.values.dtype, n_latents=1, k=1)
        return Compact(code.values, code.indices).unpack(choice, n_latents).z
    return code.z


def refusals(part: Part) -> list[str]:
    """How a rank refuses to count wrong."""
    tokens, latents = part.ranks.tokens.group, part.ranks.latents.group
    messages = []
    for n_tokens, n_latents in ((N + 2, LATENTS), (N, LATENTS + 1)):
        with pytest.raises(ValueError, match="Ranks") as caught:
            outcome(Case(), part._replace(ranks=Ranks(tokens, n_tokens, latents, n_latents)))
        messages.append(str(caught.value))
    if part.ranks.latents.several:
        with pytest.raises(ValueError, match=r"^prefixes cannot be cut where ranks share the latents: pass ranks that"):
            outcome(Case(more=(("prefixes", (2,)),)), part)
    return messages


class Found(NamedTuple):
    """What the ranks return, a tuple of one entry a rank for each case."""

    shares: Shares
    calls: dict[Case, tuple[Any, ...]]  # terms and gradients
    kept: dict[TiedCase, tuple[torch.Tensor, ...]]  # z of the rank's part
    refusals: tuple[list[str], ...]


def groups(shares: Shares) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Those of this rank, for tokens and for latents."""
    number, across = dist.get_rank(), len(shares.latents)
    grid = torch.arange(shares.count).view(-1, across)
    tokens = [dist.new_group(ranks) for ranks in grid.T.tolist()]
    latents = [dist.new_group(ranks) for ranks in grid.tolist()]
    return tokens[number % across], latents[number // across]


def in_each_rank(shares: Shares) -> tuple[list[Any], list[torch.Tensor], list[str]]:
    tokens, latents = groups(shares)
    # Dictionaries of some ranks then count as large, and most else as small.
    pytest.MonkeyPatch().setattr(ranks, "_SMALL", 130)
    known, asked = (Part.of(shares, Ranks(tokens, n, latents, LATENTS)) for n in (N, None))
    tied = Part.of(shares, Ranks(tokens, N, latents, TIED_LATENTS), TIED_LATENTS)
    calls = [outcome(case, (known, asked)[i % 2]) for i, case in enumerate(CASES)]
    return calls, [selected(case, tied) for case in TIED], refusals(known)


@pytest.fixture(scope="module", params=SHARES.values(), ids=SHARES)
def found(request) -> Found:
    calls, kept, refused = zip(*run_ranks(in_each_rank, request.param.count, request.param), strict=True)
    by_case = [dict(zip(cases, zip(*each, strict=True), strict=True)) for cases, each in ((CASES, calls), (TIED, kept))]
    return Found(request.param, *by_case, refused)


def tolerance(case: Case) -> float:
    return {torch.float64: EXACT, torch.float32: 1e-6, torch.float16: 4 * 2**-11}[case.dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_terms_and_gradients_are_those_of_one_process(found, case):
    check_outcomes(case, found.calls[case], found.shares)


def check_outcomes(case: Case, outcomes: Sequence[Any], shares: Shares) -> None:
    terms, gradients = outcome(case)
    across = len(shares.latents)
    for number, (found_terms, found_gradients) in enumerate(outcomes):
        latents = _share(shares.latents, number % across)
        for name in ("total", "mse", "cosine", "temporal", "sparsity", "auxk", "whole"):
            assert_close(getattr(found_terms, name), getattr(terms, name), tolerance(case), name)
        assert torch.equal(found_terms.fired, terms.fired[latents])
        assert found_terms.overflow == terms.overflow
        assert_close(found_terms.least, terms.least, tolerance(case), "least")
        for name, whole in gradients.items():
            want, rms = _of_latents(name, whole, latents), whole.square().mean().sqrt()
            error = (found_gradients[name] - want).abs().max()
            assert error <= tolerance(case) * rms, f"gradient of {name} is off by {error / rms:.3g} of its RMS"


def nested_in_each_rank(shares: Shares) -> list[Any]:
    pytest.MonkeyPatch().setattr(ranks, "_SMALL", 130)
    part = Part.of(shares, Ranks(dist.group.WORLD, N))
    return [outcome(case, part) for case in NESTED]


def test_nested_dictionaries_of_ranks_that_share_the_tokens():
    shares = SHARES["4 of the tokens, one of one pair and one without"]
    for case, *outcomes in zip(NESTED, *run_ranks(nested_in_each_rank, shares.count, shares), strict=True):
        check_outcomes(case, outcomes, shares)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_with_the_same_latents_get_the_same_bits(found, case):
    across = len(found.shares.latents)
    for first in range(across):
        (terms, gradients), *others = found.calls[case][first::across]
        for other_terms, other_gradients in others:
            assert all(torch.equal(a, b) for a, b in zip(terms, other_terms, strict=True))
            assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)


@pytest.mark.parametrize("case", TIED, ids=str)
def test_ties_go_to_the_lowest_token_and_latent(found, case):
    x, W = tied_rows(case.dtype)
    across = len(found.shares.latents)
    parts = found.kept[case]
    rows = [torch.cat(parts[first : first + across], 1) for first in range(0, len(parts), across)]
    assert torch.equal(torch.cat(rows), naive.batch_topk(x @ W.T, N * case.k))


class Logged(ranks.Group):
    """The first of two ranks that share the tokens, of which the other adds nothing: it logs what it starts to sum."""

    def __init__(self, gradients: dict[str, torch.Tensor], log: list[str]) -> None:
        self.count, self.number, self.log = 2, 0, log
        self.names = {each.data_ptr(): name for name, each in gradients.items()}

    def summed(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def start_sum_(self, tensor: torch.Tensor) -> Mock:
        self.log.append(self.names[tensor.data_ptr()])
        return Mock(wait=lambda: self.log.append("wait"))

    def gathered(self, value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value, torch.zeros_like(value)])

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"regime": "dense"}, ["W_dec", "of pre", "W_enc", "of tables"]),
        ({"regime": "sparse"}, ["of pre", "W_dec", "W_enc", "of tables"]),
        ({"regime": "dense", "chunk": 12}, ["of pre", "of tables", "W_dec", "of pre", "W_enc", "of tables"]),
        ({"regime": "dense", "prefixes": (2,)}, ["of pre", "W_dec", "of pre", "W_enc", "of tables"]),
        (
            {"regime": "dense", "k_aux": 1, "weights": LossWeights(auxk=1.0)},
            ["of pre", "of pre", "of tables", "W_dec", "W_enc"],
        ),
    ],
    ids=["dense", "sparse", "of two chunks the last", "of a nested dictionary's parts the last", "after dead latents"],
)
def test_large_gradients_travel_while_others_are_computed(monkeypatch, options, expected):
    log: list[str] = []

    def logged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (log.append(name), function(*arguments))[1]

    monkeypatch.setattr(ranks, "_SMALL", LATENTS * D * 8)
    monkeypatch.setattr(DenseCode, "masked_gradient", logged("of pre", DenseCode.masked_gradient))
    monkeypatch.setattr(SparseCode, "_backward_latents", logged("of pre", SparseCode._backward_latents))
    monkeypatch.setattr(fused, "add_modulation_gradients", logged("of tables", fused.add_modulation_gradients))
    p = random_problem(N, D, LATENTS, K, groups=GROUPS, requires_grad=False)
    gradients = {name: torch.zeros_like(each) for name, each in p.parameters().items()}
    shared = Ranks(n_tokens=N)
    shared.tokens = Logged(gradients, log)
    dead = torch.arange(LATENTS) % 2 == 0 if options.get("k_aux") else None
    options = {"backend": "reference", "chunk": N, "dead": dead} | options
    tide_loss(**p.arguments(), **options, gradients=gradients, ranks=shared)
    assert log == [*expected, "wait", "wait"]
    # Not where ranks share the latents: operations of their group would run beside those of the other.
    log.clear()
    if "prefixes" not in options:
        grid = Ranks(n_tokens=N)
        grid.tokens, grid.latents, grid._n_latents = Logged(gradients, log), Logged(gradients, log), LATENTS
        tide_loss(**p.arguments(), **options, gradients=gradients, ranks=grid)
        assert {"of pre", "of tables"} == set(log)


def test_wrong_numbers_are_noticed(found):
    tokens = "n_tokens of Ranks is 24 and its ranks hold 22 rows: pass their sum"
    latents = "n_latents of Ranks is 12 and its ranks hold 11 latents: pass their sum"
    assert all(refused == [tokens, latents] for refused in found.refusals)


def test_what_ranks_cannot_be():
    p = random_problem(N, D, LATENTS, K, requires_grad=False)
    with pytest.raises(ValueError, match="pass gradients"):
        tide_loss(**p.arguments(), ranks=Ranks())
    with pytest.raises(TypeError, match="ranks is a int"):
        tide_loss(**p.arguments(), gradients={}, ranks=2)
    with pytest.raises(ValueError, match="n_tokens = -1"):
        Ranks(n_tokens=-1)
    with pytest.raises(ValueError, match="belong together"):
        Ranks(n_latents=11)


def test_one_process_may_be_all_ranks():
    terms, gradients = outcome(Case(), Part(ranks=Ranks()))
    expected_terms, expected = outcome(Case())
    assert all(torch.equal(a, b) for a, b in zip(terms, expected_terms, strict=True))
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
