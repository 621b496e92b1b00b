"""`select` and `keep_top_` against the reference, to the bit."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.codes import dense
from tide_kernels import reference, triton
from tide_kernels.testing import adversarial_rows, assert_close
from tide_kernels.triton import configs

DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
]  # kernels compute with integers only, which the interpreter does right

SHAPES = [
    pytest.param(1, 1, id="one latent"),
    pytest.param(97, 5, id="odd n: the last chunk is mostly mask"),
    pytest.param(300, 15, id="5 % of more chunks than stay in registers"),
    pytest.param(131, 130, id="k just below n: fewer positives than k"),
    pytest.param(1003, 7, id="few of many: by groups, of which the last is short"),
    pytest.param(512, 1, id="the largest alone, by groups"),
]


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    nan = expected.isnan()
    return torch.equal(actual.isnan(), nan) and torch.equal(actual[~nan], expected[~nan])


def check(pre: torch.Tensor, k: int, device: torch.device) -> None:
    values, indices = triton.select(pre.to(device), k)
    expected_values, expected_indices = reference.select(pre, k)
    assert values.dtype == pre.dtype
    assert indices.dtype == torch.int32
    assert torch.equal(indices.cpu(), expected_indices)
    assert same(values.cpu(), expected_values)
    z = pre.to(device, copy=True)
    triton.keep_top_(z, k)
    assert same(z.cpu(), dense(expected_values, expected_indices, pre.shape[1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_latents", "k"), SHAPES)
def test_adversarial_rows(n_latents, k, dtype, device):
    # All in one batch, since the search in a row starts from the threshold of the row before.
    check(torch.stack(list(adversarial_rows(n_latents, dtype).values())), k, device)


def test_rows_that_lie_apart(device, generator):
    check(torch.randn(6, 80, generator=generator)[::2], 4, device)


def test_rows_whose_columns_lie_apart(device, generator):
    pre = torch.randn(40, 6, generator=generator).T
    values, indices = triton.select(pre.to(device), 4)
    expected = reference.select(pre, 4)
    assert torch.equal(values.cpu(), expected[0])
    assert torch.equal(indices.cpu(), expected[1])


def test_more_tokens_than_programs(device, monkeypatch):
    # So many tokens that each program serves several rows, and the last one fewer.
    rows = torch.randint(-3, 9, (2048 + 1, 16), generator=torch.Generator().manual_seed(1)).half()
    if device.type == "cpu":
        monkeypatch.setattr(importlib.import_module("tide_kernels.triton.select"), "_ROWS_BUSY", 2)
        rows = rows[:8]
    check(rows, 3, device)


@pytest.fixture(params=["in one pass", "in two"])
def passes(request, monkeypatch):
    """Whether `keep_top_with_sums_` computes the sums itself."""
    rules = configs._TABLE["select"]
    rules = tuple(rule._replace(config={**rule.config, "sums": int(request.param == "in one pass")}) for rule in rules)
    monkeypatch.setattr(configs, "_TABLE", {**configs._TABLE, "select": rules})
    configs.lookup.cache_clear()
    yield request.param
    configs.lookup.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_tokens", "paired"), [(6, True), (6, False), (5, False), (0, True)])
def test_sums(n_tokens, paired, dtype, passes, device, generator):
    pre = torch.randn(n_tokens, 300, generator=generator).to(dtype)
    z = pre.to(device, copy=True)
    temporal, soft = triton.keep_top_with_sums_(z, 100, paired, 0.1)
    expected = pre.clone()
    reference.keep_top_(expected, 100)
    assert torch.equal(z.cpu(), expected)
    code = expected.double()
    pairs = (code[0::2] - code[1::2]).square().sum() if paired else torch.zeros(())
    assert_close(temporal, pairs, 1e-6, "temporal")
    assert_close(soft, (code.square() / (code.square() + 0.1**2)).sum() / 300, 1e-6, "soft")


def test_no_pair_is_divided_between_programs(device, monkeypatch):
    # The interpreter runs programs in order, so the sum would be right all the same: the rows of a program are checked.
    select = importlib.import_module("tide_kernels.triton.select")
    monkeypatch.setattr(select, "_ROWS_BUSY", 2)
    monkeypatch.setattr(select, "_compiled", lambda *arguments: False)  # that of Triton has programs of several rows
    rows, launched = [], select.launch.launch
    place = select.select_kernel.arg_names.index("rows") + 3  # after the kernel, the grid and the device
    monkeypatch.setattr(select.launch, "launch", lambda *a, **k: (rows.append(a[place]), launched(*a, **k)))
    z = torch.randint(-3, 9, (10, 16), generator=torch.Generator().manual_seed(1)).half().to(device)
    temporal, _ = triton.keep_top_with_sums_(z, 3, True, 0.1)
    assert [count % 2 for count in rows] == [0]
    code = z.double()
    assert_close(temporal, (code[0::2] - code[1::2]).square().sum(), 1e-6)


def test_nan_reaches_the_sums(device):
    pre = torch.ones(2, 40)
    pre[1, 3] = torch.nan
    assert all(total.isnan() for total in triton.keep_top_with_sums_(pre.to(device), 4, True, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("n_latents", [18432, 73728])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_rows(n_latents, dtype, device, generator):
    rows = torch.randn(2, n_latents, generator=generator)
    rows[1] = (rows[1] * 4).round()  # ties everywhere
    check(rows.to(dtype), n_latents // 20, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_tokens(dtype, device):
    values, indices = triton.select(torch.empty(0, 50, dtype=dtype, device=device), 3)
    assert values.shape == indices.shape == (0, 3)
    triton.keep_top_(torch.empty(0, 50, dtype=dtype, device=device), 3)


def test_the_choice_of_the_compiled_kernel_needs_one(device, monkeypatch):
    """A file of measured configurations may come from a machine that has it."""
    launch = importlib.import_module("tide_kernels.triton.launch")
    config = launch.config
    monkeypatch.setattr(launch, "config", lambda *arguments: {**config(*arguments), "compiled": 1})
    check(torch.stack(list(adversarial_rows(97, torch.float32).values())), 5, device)


def test_without_the_compiled_kernels_tritons_run(monkeypatch):
    select = importlib.import_module("tide_kernels.triton.select")
    monkeypatch.setattr(select.launch, "config", lambda *arguments: {"compiled": 1})
    monkeypatch.setattr(select.native, "cuda_unavailable", lambda: "not built: error: no such macro")
    assert not select._compiled("select", SimpleNamespace(is_cuda=True, shape=(2, 3)))
    monkeypatch.setattr(select.native, "cuda_unavailable", lambda: None)
    assert select._compiled("select", SimpleNamespace(is_cuda=True, shape=(2, 3)))
