"""Entries above thresholds against the reference, to the bit."""

import pytest
import torch

from tide_kernels import reference, triton
from tide_kernels.testing import adversarial_rows

DTYPES = [torch.float16, torch.bfloat16, torch.float32]  # widened by hand, since the interpreter gets bfloat16 wrong


def equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=0, equal_nan=True)


CASES = {  # of thresholds, capacity and cut
    "one number": (torch.float32, 70),
    "one number, ties up to a cut, most rows overflow": (torch.bfloat16, 5),
    "one of each latent": (torch.bfloat16, 70),
    "one of each latent, most rows overflow": (torch.float32, 5),
    "one number a group": (torch.float16, 70),
    "a row a group, ties up to a cut, most rows overflow": (torch.float16, 5),
    "a row a group, by column": (torch.float16, 30),
    "one latent": (torch.float32, 1),
}


@pytest.fixture(params=CASES)
def case(request, generator):
    """Pre-activations, thresholds of both signs with ties among the entries, groups, cut and capacity."""
    name = request.param
    dtype, capacity = CASES[name]
    pre = torch.stack(list(adversarial_rows(1 if name == "one latent" else 70, dtype).values()))
    n_tokens, n_latents = pre.shape
    levels = torch.randint(-1, 3, (3, n_latents), generator=generator) / 2
    group = torch.randint(3, (n_tokens,), generator=generator) if "group" in name else None
    cut = torch.arange(n_tokens, dtype=torch.int32) * 5 % (n_latents + 1) - 1 if "cut" in name else None
    if "number" in name:
        levels = levels[:, :1].expand(3, n_latents)
    if "by column" in name:
        levels = levels.T.contiguous().T
    return pre, levels if "group" in name else levels[:1], group, cut, capacity


def to(device, *tensors):
    return [None if t is None else t.to(device) for t in tensors]


def test_select_above(case, device):
    *arguments, capacity = case
    found = triton.select_above(*to(device, *arguments), capacity)
    for actual, expected in zip(found, reference.select_above(*arguments, capacity), strict=True):
        equal(actual, expected)


def test_keep_above(case, device):
    *arguments, _ = case
    pre, *rest = to(device, *arguments)
    expected = torch.empty_like(arguments[0])
    count = reference.keep_above(*arguments, expected)
    out = torch.full_like(pre, 7.0)
    equal(triton.keep_above(pre, *rest, out), count)
    equal(out, expected)
    equal(triton.keep_above(pre, *rest, pre), count)
    equal(pre, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_threshold_between_two_numbers_of_the_dtype(dtype, device):
    """Entries are compared in float32, in which a threshold may lie where the entries' dtype has no number."""
    pre = torch.tensor([[1.0, 1 + torch.finfo(dtype).eps]], dtype=dtype, device=device)
    threshold = torch.full((1, 2), 1 + torch.finfo(torch.float32).eps, device=device)
    kept = [1] if dtype != torch.float32 else []
    _, indices, count = triton.select_above(pre, threshold, None, None, 2)
    assert indices.tolist() == [[*kept, *[-1] * (2 - len(kept))]]
    assert count.tolist() == [len(kept)]


def test_the_first_of_all_latents_and_the_last_of_each_word(device):
    """Bit 31 of a word is the sign of the integer that holds it."""
    pre = torch.zeros(2, 128, device=device)
    pre[0, [0, 31, 63, 127]] = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device)
    values, indices, count = triton.select_above(pre, torch.zeros(1, 128, device=device), None, None, 6)
    assert indices.tolist() == [[0, 31, 63, 127, -1, -1], [-1] * 6]
    assert values.tolist() == [[1.0, 2.0, 3.0, 4.0, 0.0, 0.0], [0.0] * 6]
    assert count.tolist() == [4, 0]


def test_rows_that_lie_apart(device, generator):
    pre = torch.randn(6, 80, generator=generator)
    threshold = torch.zeros(1, 80)
    expected = reference.select_above(pre[::2], threshold, None, None, 30)
    for view in (pre.to(device)[::2], pre.T.contiguous().to(device).T[::2]):
        for actual, wanted in zip(
            triton.select_above(view, threshold.to(device), None, None, 30), expected, strict=True
        ):
            equal(actual, wanted)
    out = torch.zeros(3, 100, device=device)
    triton.keep_above(pre.to(device)[::2], threshold.to(device), None, None, out[:, :80])
    equal(out[:, :80], pre[::2].clamp(min=0))
    assert not out[:, 80:].any()


def test_a_result_that_cannot_be_written_is_refused(device):
    pre, threshold = torch.ones(3, 4, device=device), torch.zeros(1, 4, device=device)
    with pytest.raises(ValueError, match="out of keep_above_kernel is not contiguous"):
        triton.keep_above(pre, threshold, None, None, torch.zeros(3, 8, device=device)[:, ::2])
    with pytest.raises(ValueError, match="rows of out overlap"):
        triton.keep_above(pre, threshold, None, None, torch.zeros(1, 4, device=device).expand(3, 4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_of_a_value(dtype, device):
    rows = torch.stack(list(adversarial_rows(97, dtype).values()))
    for value in (0.0, 1.0, -1.0, torch.inf, torch.nan):
        wanted = torch.tensor(value, dtype=dtype)
        equal(triton.count_equal(rows.to(device), wanted.to(device)), reference.count_equal(rows, wanted))


def test_no_tokens(device):
    pre, threshold = torch.empty(0, 50, device=device), torch.zeros(1, 50, device=device)
    values, indices, count = triton.select_above(pre, threshold, None, None, 3)
    assert values.shape == indices.shape == (0, 3)
    assert count.shape == triton.keep_above(pre, threshold, None, None, pre).shape == (0,)
