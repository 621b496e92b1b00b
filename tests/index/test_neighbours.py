"""The nearest latents, against all cosines at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tide.index.neighbours import matched, nearest

N, D, M = 23, 7, 5
DEAD = [0, 9, 22]


@pytest.fixture
def vectors() -> torch.Tensor:
    found = torch.randn(N, D, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, N + 1)[:, None]
    found[DEAD] = 0
    return found


def brute_force(rows: torch.Tensor, others: torch.Tensor, m: int, itself: bool) -> list[list[tuple[int, float]]]:
    cosines = F.normalize(rows, dim=1) @ F.normalize(others, dim=1).T
    found = []
    for i in range(len(rows)):
        among = [j for j in range(len(others)) if others[j].any() and rows[i].any() and (itself or i != j)]
        found.append([(j, float(cosines[i, j])) for j in sorted(among, key=lambda j: -float(cosines[i, j]))[:m]])
    return found


def check(found: tuple[torch.Tensor, torch.Tensor], expected: list[list[tuple[int, float]]], m: int) -> None:
    numbers, cosines = found
    assert numbers.dtype == torch.int32
    assert numbers.shape == cosines.shape == (len(expected), m)
    for row, values, wanted in zip(numbers.tolist(), cosines.tolist(), expected, strict=True):
        lacking = m - len(wanted)
        assert row == [j for j, _ in wanted] + [-1] * lacking
        assert values == pytest.approx([cosine for _, cosine in wanted] + [0] * lacking, abs=1e-6)


@pytest.mark.parametrize("block", [1, 4 * N, 2**26], ids=["a row", "four rows", "all rows"])
def test_the_nearest_are_exact_in_blocks_of_any_size(vectors, monkeypatch, block):
    monkeypatch.setattr("tide.index.neighbours.BLOCK", block)
    check(nearest(vectors, M), brute_force(vectors, vectors, M, itself=False), M)
    others = vectors.flip(0)[:11]
    check(matched(vectors, others, M), brute_force(vectors, others, M, itself=True), M)


def test_latents_that_never_fire_are_nobodys_neighbours_and_have_none(vectors):
    numbers, cosines = nearest(vectors, M)
    assert not torch.isin(numbers, torch.tensor(DEAD, dtype=torch.int32)).any()
    assert (numbers[DEAD] == -1).all()
    assert (cosines[DEAD] == 0).all()


def test_fewer_than_are_asked_for(vectors):
    few = vectors[[1, 0, 2, 3]]
    check(nearest(few, M), brute_force(few, few, M, itself=False), M)
    assert nearest(few, M)[0][0].tolist().count(-1) == 3
    assert nearest(vectors[:1], 2)[0].tolist() == [[-1, -1]]


def test_opposite_latents_are_the_last(vectors):
    pair = torch.stack([vectors[1], -vectors[1], vectors[2]])
    numbers, cosines = nearest(pair, 2)
    assert numbers[0].tolist() == [2, 1]
    assert float(cosines[0, 1]) == pytest.approx(-1)


def test_half_precision_is_compared_in_single(vectors):
    numbers, _ = nearest(vectors.half(), M)
    assert torch.equal(numbers, nearest(vectors.half().float(), M)[0])


def test_reports_the_rows_that_are_done(vectors, monkeypatch):
    monkeypatch.setattr("tide.index.neighbours.BLOCK", 10 * N)
    done: list[int] = []
    nearest(vectors, M, done.append)
    assert done == [10, 20, 23]
