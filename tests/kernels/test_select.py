"""The selection contract, which is the same for every backend."""

from importlib import import_module

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_kernels import backend_status, encode_topk, reference
from tide_kernels.testing import adversarial_rows

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

SHAPES = [
    pytest.param(1, 1, id="one latent"),
    pytest.param(16, 1, id="k=1"),
    pytest.param(16, 16, id="k=n"),
    pytest.param(97, 5, id="odd n, column groups leave a remainder"),
    pytest.param(64, 31, id="k just below n/2: narrowest column groups"),
    pytest.param(64, 40, id="k above n/2: no column groups"),
    pytest.param(300, 15, id="5 % density"),
]


def check(pre: torch.Tensor, k: int) -> None:
    values, indices = reference.select(pre, k)
    expected_values, expected_indices = naive.compact(naive.topk(pre, k), k)
    assert values.shape == indices.shape == (len(pre), k)
    assert values.dtype == pre.dtype
    assert indices.dtype == torch.int32
    assert torch.equal(indices, expected_indices)
    assert torch.equal(values.isnan(), expected_values.isnan())
    assert torch.equal(values.nan_to_num(1.0), expected_values.nan_to_num(1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_latents", "k"), SHAPES)
def test_adversarial_rows(n_latents, k, dtype):
    rows = adversarial_rows(n_latents, dtype)
    for name, row in rows.items():
        try:
            check(row[None], k)
        except AssertionError as error:
            raise AssertionError(f"row {name!r}") from error
    check(torch.stack(list(rows.values())), k)  # rows of unlike kinds side by side do not disturb each other


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_rows(data):
    n_latents = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(1, n_latents))
    dtype = data.draw(st.sampled_from(DTYPES))
    special = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, float("nan"), -float("nan"), float("inf"), 1e-45, 1e-7])
    entry = st.one_of(special, st.floats(width=16))
    rows = data.draw(st.lists(st.lists(entry, min_size=n_latents, max_size=n_latents), min_size=1, max_size=4))
    check(torch.tensor(rows, dtype=torch.float64).to(dtype), k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_all_backends_select_the_same_bits(dtype):
    """One input for every backend that runs here, in Triton's case by the interpreter."""
    serving = [name for name, reason in backend_status().items() if reason is None]
    assert "reference" in serving
    generator = torch.Generator().manual_seed(0)
    cases = [
        (torch.stack(list(adversarial_rows(n, dtype).values())), k) for n, k in ((1, 1), (33, 33), (257, 1), (300, 60))
    ]
    for _ in range(10):  # few levels, so that ties decide
        n = int(torch.randint(1, 400, (), generator=generator))
        k = int(torch.randint(1, n + 1, (), generator=generator))
        cases.append((torch.randint(-3, 9, (5, n), generator=generator).to(dtype) / 4, k))
    for pre, k in cases:
        results = {name: import_module(f"tide_kernels.{name}").select(pre, k) for name in serving}
        values, indices = results.pop("reference")
        for name, (got_values, got_indices) in results.items():
            assert torch.equal(got_indices, indices), (name, pre.shape, k)
            nan = values.isnan()
            assert torch.equal(got_values.isnan(), nan), name
            assert torch.equal(got_values[~nan].view(torch.uint8), values[~nan].view(torch.uint8)), name


def test_non_contiguous_rows():
    check(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).T, 4)
    check(torch.randn(8, 100, generator=torch.Generator().manual_seed(0))[:, ::2], 4)


def test_nan_tokens_show_in_the_code():
    x = torch.ones(3, 4)
    x[1, 2] = float("nan")
    values, _ = encode_topk(x, torch.ones(20, 4), None, 2)
    assert values[1].isnan().all()
    assert values[[0, 2]].isfinite().all()


def test_pre_activations_are_rounded_before_the_selection():
    # 1 + 2^-10 is 1 in bfloat16: a tie there, which goes to the lower index, and none in float32.
    x, W_enc = torch.tensor([[1, 2**-10]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert encode_topk(x, W_enc, None, 1)[1].item() == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert encode_topk(x, W_enc, None, 1)[1].item() == 0
