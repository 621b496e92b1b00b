"""Counts of keys against the reference."""

import importlib

import pytest
import torch

from tide_kernels import reference, triton
from tide_kernels.testing import adversarial_rows

PARTS = {
    "all bits of float16": (torch.float16, 15, 0, None),
    "all bits of bfloat16": (torch.bfloat16, 15, 0, None),
    "upper bits of float32": (torch.float32, 16, 15, None),
    "lower bits of float32 where the upper ones are those of 1": (torch.float32, 15, 0, 0x3F80 * 2),
    "lower bits of NaN": (torch.float32, 15, 0, 0xFFFF),
}


@pytest.mark.parametrize("part", PARTS)
def test_key_histogram(part, device):
    dtype, bits, shift, high = PARTS[part]
    pre = torch.stack(list(adversarial_rows(150, dtype).values()))
    pre[0, :60] = 1 + torch.arange(60) * torch.finfo(dtype).eps
    counts = torch.arange(2**bits)
    expected = counts.clone()
    high = None if high is None else torch.tensor(high)
    reference.key_histogram_(pre, expected, shift, high)
    assert int((expected - counts).sum()) > 60
    found = counts.to(device)
    triton.key_histogram_(pre.to(device), found, shift, None if high is None else high.to(device))
    assert torch.equal(found.cpu(), expected)


def decided(counts: torch.Tensor, wanted: int) -> tuple[int, int, int] | None:
    """The wanted-th largest part, its count, and the sum of those above; None if there are fewer."""
    reached = counts.flip(0).cumsum(0)
    if reached[-1] < wanted:
        return None
    place = int((reached < wanted).sum())
    own = int(counts[len(counts) - 1 - place])
    return len(counts) - 1 - place, own, int(reached[place]) - own


ROWS = {  # rows, of which the sample sees every fifth
    "alike": lambda normal: normal,
    "larger where the sample looks": lambda normal: normal * torch.where(torch.arange(64) % 5 == 0, 3.0, 1.0)[:, None],
    "smaller where the sample looks": lambda normal: normal * torch.where(torch.arange(64) % 5 == 0, 0.2, 1.0)[:, None],
    "few levels": lambda normal: (normal * 2).round(),
    "hardly any positive": lambda normal: normal - 3.2,
    "NaN": lambda normal: normal.masked_fill(normal > 1, torch.nan),
}


@pytest.mark.parametrize("wanted", [1, 640, 3000, 10**6])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_what_decides_a_rank(dtype, rows, wanted, device, generator, monkeypatch):
    module = importlib.import_module("tide_kernels.triton.threshold_histogram")
    for name, value in {"_LEAST_ENTRIES": 0, "_SAMPLE_ROWS": 16, "_SLACK": 4}.items():
        monkeypatch.setattr(module, name, value)
    pre = ROWS[rows](torch.randn(64, 100, generator=generator)).to(dtype)
    bits, shift = (15, 0) if dtype == torch.float16 else (16, 15)
    expected, found = torch.zeros(2**bits, dtype=torch.int64), torch.zeros(2**bits, dtype=torch.int64, device=device)
    reference.key_histogram_(pre, expected, shift, None)
    triton.rank_histogram_(pre.to(device), found, shift, wanted)
    assert decided(found.cpu(), wanted) == decided(expected, wanted)
    if decided(expected, wanted) is None:
        assert torch.equal(found.cpu(), expected)


def test_most_entries_are_not_counted_one_by_one(device, generator, monkeypatch):
    module = importlib.import_module("tide_kernels.triton.threshold_histogram")
    monkeypatch.setattr(module, "_LEAST_ENTRIES", 0)
    pre = torch.randn(64, 100, generator=generator).half()
    counts = torch.zeros(2**15, dtype=torch.int64, device=device)
    triton.rank_histogram_(pre.to(device), counts, 0, 2000)
    full = torch.zeros(2**15, dtype=torch.int64)
    reference.key_histogram_(pre, full, 0, None)
    assert decided(counts.cpu(), 2000) == decided(full, 2000)
    assert int((counts > 0).sum()) < int((full > 0).sum()) / 2


@pytest.mark.parametrize("larger", [1.1, 1.3])
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_the_sample_holds_both_rows_of_pairs_alike(which, larger, device, generator, monkeypatch):
    """Else nearly all entries of the larger rows, or none, were in the sample, and everything would be counted."""
    module = importlib.import_module("tide_kernels.triton.threshold_histogram")
    for name, value in {"_LEAST_ENTRIES": 0, "_SAMPLE_ROWS": 64, "_SLACK": 4}.items():
        monkeypatch.setattr(module, name, value)
    bounds, counted = [], module._counted

    def watched(*arguments, least=None, **keywords):
        bounds.append(least)
        return counted(*arguments, least=least, **keywords)

    monkeypatch.setattr(module, "_counted", watched)
    pre = torch.randn(256, 512, generator=generator)
    pre[which::2] *= larger
    counts = torch.zeros(2**15, dtype=torch.int64, device=device)
    triton.rank_histogram_(pre.half().to(device), counts, 0, 10 * 256)
    assert len(bounds) == 3
    assert int(bounds[2]) == module._NOTHING


def test_rows_that_lie_apart(device, generator):
    pre = torch.randn(6, 80, generator=generator).half()
    expected, found = torch.zeros(2**15, dtype=torch.int64), torch.zeros(2**15, dtype=torch.int64, device=device)
    reference.key_histogram_(pre[::2], expected, 0, None)
    triton.key_histogram_(pre.to(device)[::2], found, 0, None)
    assert torch.equal(found.cpu(), expected)


def test_no_tokens(device):
    counts = torch.arange(2**15, device=device)
    triton.key_histogram_(torch.empty(0, 50, device=device).half(), counts, 0, None)
    assert torch.equal(counts.cpu(), torch.arange(2**15))
