"""Several ranks that share a batch get the terms and gradients of one process that has all of it."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from tests.helpers import naive
from tests.helpers.layouts import dyadic
from tests.helpers.ranks import run_ranks
from tide_kernels import LossTerms, LossWeights, Ranks, batch_topk, tide_loss
from tide_kernels.batch import Batch
from tide_kernels.codes import Compact, SparseCode
from tide_kernels.dispatch import choose
from tide_kernels.options import LossArguments, LossOptions, Parameters
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-11  # float64, relative to the RMS
N, D, LATENTS, K, GROUPS = 22, 5, 11, 3, 3
ALL = LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4)
THRESHOLDS: dict[str, tuple[int, ...]] = {"one": (), "each": (LATENTS,), "groups": (GROUPS, LATENTS)}

#: The rows of each rank.
SHARES = {
    "2 ranks": (12, 10),
    "2 ranks, one without rows": (0, 22),
    "4 ranks, one of one pair and one without rows": (8, 2, 0, 12),
}


class Case(NamedTuple):
    """One call of the loss."""

    activation: str = "topk"
    thresholds: str | None = None  # a key of THRESHOLDS
    regime: str = "sparse"
    backend: str = "reference"
    dtype: torch.dtype = torch.float64
    start: float | None = 0.25
    more: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        parts = (self.activation, self.thresholds, self.regime, self.backend, str(self.dtype).removeprefix("torch."))
        more = (f"{name}={value}" for name, value in self.more)
        return " ".join(filter(None, (*parts, "" if self.start is not None else "held", *more)))


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
    Case(dtype=torch.float16, regime="dense"),
    *(Case("batch_topk", None, more=(("k", k),)) for k in (1, LATENTS)),
]


def outcome(case: Case, rows: slice, ranks: Ranks | None) -> tuple[LossTerms, dict[str, torch.Tensor]]:
    """Terms and gradients of a case's call with so many of its rows."""
    p = random_problem(N, D, LATENTS, K, groups=GROUPS, dtype=case.dtype, requires_grad=False)
    arguments = p.arguments() | {"x": p.x[rows], "group": p.group[rows]}
    parameters = p.parameters()
    if case.thresholds is not None:
        uniform = torch.rand(THRESHOLDS[case.thresholds], generator=torch.Generator().manual_seed(1))
        parameters["threshold"] = arguments["threshold"] = (uniform + 0.2).to(case.dtype)
    options = {"weights": ALL, "paired": True, "dead": torch.arange(LATENTS) % 3 == 0, "k_aux": 2, "chunk": 4}
    options |= {"s_target": 0.1, "delta": 0.03, "bandwidth": 1.5, "start": case.start} | dict(case.more)
    options |= {"activation": case.activation, "regime": case.regime, "backend": case.backend}
    dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    buffers = {name: torch.ones(q.shape, dtype=dtype) for name, q in parameters.items()}
    terms = tide_loss(**arguments | options, gradients=buffers, ranks=ranks)
    return terms, buffers


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
KS = (1, 2, 5, 9)
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
    """Tokens and weights of small multiples of 1/8, so that products are exact and most of them tie."""
    return dyadic(N, 2, seed=N, eighths=3, dtype=dtype), dyadic(12, 2, seed=12, eighths=3, dtype=dtype)


def selected(case: TiedCase, rows: slice, ranks: Ranks) -> torch.Tensor:
    """z of a rank's own rows."""
    x, W = tied_rows(case.dtype)
    options = LossOptions(k=case.k, chunk=4, activation="batch_topk")
    arguments = LossArguments(x[rows], Parameters(W, None, W, None, None, None), None, None, case.dtype, options)
    device = x.device
    choice = choose(case.backend, case.regime, device=device, dtype=case.dtype, n_latents=len(W), k=case.k)
    with pytest.MonkeyPatch.context() as patch:
        if case.bound == BOUNDS[1]:
            patch.setattr(batch_topk, "sampled_bound", lambda batch: torch.tensor(3.0))
        if case.bound == BOUNDS[2] and ranks.number == 1:
            patch.setattr(batch_topk, "MOST_CANDIDATES", 0)
        selection = batch_topk.batch_topk(Batch(arguments, choice, ranks))
    codes = [code for _, code, _ in selection.chunks(lambda tokens, pre: None)]
    return torch.cat([dense(code, len(W)) for code in codes]) if codes else x.new_zeros(0, len(W))


def dense(code: Any, n_latents: int) -> torch.Tensor:
    if isinstance(code, SparseCode):
        choice = choose("reference", "dense", device=code.values.device, dtype=code.values.dtype, n_latents=1, k=1)
        return Compact(code.values, code.indices).unpack(choice, n_latents).z
    return code.z


def refusal(rows: slice) -> str:
    """How a rank refuses to count wrong."""
    with pytest.raises(ValueError, match="Ranks") as caught:
        outcome(Case(), rows, Ranks(dist.group.WORLD, n_tokens=N + 2))
    return str(caught.value)


class Found(NamedTuple):
    """What the ranks return, a tuple or list of one entry a rank."""

    calls: dict[Case, tuple[Any, ...]]  # terms and gradients
    kept: dict[TiedCase, tuple[torch.Tensor, ...]]  # z of the rank's rows
    refusals: tuple[str, ...]


def in_each_rank(shares: tuple[int, ...]) -> tuple[list[Any], list[torch.Tensor], str]:
    first = sum(shares[: dist.get_rank()])
    rows = slice(first, first + shares[dist.get_rank()])
    known, asked = Ranks(dist.group.WORLD, n_tokens=N), Ranks(dist.group.WORLD)
    calls = [outcome(case, rows, (known, asked)[i % 2]) for i, case in enumerate(CASES)]
    return calls, [selected(case, rows, known) for case in TIED], refusal(rows)


@pytest.fixture(scope="module", params=SHARES.values(), ids=SHARES)
def found(request) -> Found:
    calls, kept, refusals = zip(*run_ranks(in_each_rank, len(request.param), request.param), strict=True)
    by_case = [dict(zip(cases, zip(*each, strict=True), strict=True)) for cases, each in ((CASES, calls), (TIED, kept))]
    return Found(*by_case, refusals)


def tolerance(case: Case) -> float:
    return {torch.float64: EXACT, torch.float32: 1e-6, torch.float16: 4 * 2**-11}[case.dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_terms_and_gradients_are_those_of_one_process(found, case):
    terms, gradients = outcome(case, slice(None), None)
    for found_terms, found_gradients in found.calls[case]:
        for name in ("total", "mse", "cosine", "temporal", "sparsity", "auxk"):
            assert_close(getattr(found_terms, name), getattr(terms, name), tolerance(case), name)
        assert torch.equal(found_terms.fired, terms.fired)
        assert found_terms.overflow == terms.overflow
        assert_close(found_terms.least, terms.least, tolerance(case), "least")
        for name, want in gradients.items():
            assert_close(found_gradients[name], want, tolerance(case), f"gradient of {name}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_ranks_get_the_same_bits(found, case):
    (terms, gradients), *others = found.calls[case]
    for other_terms, other_gradients in others:
        assert all(torch.equal(a, b) for a, b in zip(terms, other_terms, strict=True))
        assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)


@pytest.mark.parametrize("case", TIED, ids=str)
def test_ties_go_to_the_lowest_rank_token_and_latent(found, case):
    x, W = tied_rows(case.dtype)
    assert torch.equal(torch.cat(found.kept[case]), naive.batch_topk(x @ W.T, N * case.k))


def test_a_wrong_number_of_tokens_is_noticed(found):
    assert set(found.refusals) == {"n_tokens of Ranks is 24 and its ranks hold 22 rows: pass their sum"}


def test_what_ranks_cannot_be():
    p = random_problem(N, D, LATENTS, K, requires_grad=False)
    with pytest.raises(ValueError, match="pass gradients"):
        tide_loss(**p.arguments(), ranks=Ranks())
    with pytest.raises(TypeError, match="ranks is a int"):
        tide_loss(**p.arguments(), gradients={}, ranks=2)
    with pytest.raises(ValueError, match="n_tokens = -1"):
        Ranks(n_tokens=-1)


def test_one_process_may_be_all_ranks():
    terms, gradients = outcome(Case(), slice(None), Ranks())
    expected_terms, expected = outcome(Case(), slice(None), None)
    assert all(torch.equal(a, b) for a, b in zip(terms, expected_terms, strict=True))
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
