"""The compiled selection: the same bits as the reference's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.codes import dense
from tide_kernels import native, reference
from tide_kernels.testing import adversarial_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

SHAPES = [
    pytest.param(1, 1, id="one latent"),
    pytest.param(16, 16, id="k=n, one whole group of keys"),
    pytest.param(97, 5, id="n odd, below the length that is sampled"),
    pytest.param(2049, 1, id="k=1, sampled"),
    pytest.param(2500, 125, id="5 % density, sampled, n not a multiple of 16"),
    pytest.param(2500, 2499, id="k just below n"),
    pytest.param(4609, 4609, id="k=n, sampled"),
    pytest.param(20000, 40, id="the longest sample"),
]


def check(pre, k):
    values, indices = native.select(pre, k)
    expected_values, expected_indices = reference.select(pre, k)
    assert values.dtype == pre.dtype
    assert indices.dtype == torch.int32
    assert torch.equal(indices, expected_indices)
    assert torch.equal(values.isnan(), expected_values.isnan())
    assert torch.equal(values.nan_to_num(1.0), expected_values.nan_to_num(1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_latents", "k"), SHAPES)
def test_adversarial_rows(n_latents, k, dtype):
    check(torch.stack(list(adversarial_rows(n_latents, dtype).values())), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_that_misleads(dtype):
    """The bound comes from sampled columns, which here hold all of the large values, or none."""
    n_latents, groups = 4096, 32
    seen = torch.zeros(n_latents, dtype=torch.bool)
    for group in range(groups):
        seen[group * (n_latents // groups) :][:16] = True
    noise = torch.rand(n_latents, generator=torch.Generator().manual_seed(0)) + 0.5
    rows = [
        torch.where(seen, 100 * noise, noise),
        torch.where(seen, noise / 100, noise),
        torch.where(seen, noise, -noise),
    ]
    for k in (1, 200, 600):
        check(torch.stack(rows).to(dtype), k)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_row(data):
    special = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, float("nan"), -float("nan"), float("inf"), 1e-45, 1e-7])
    row = data.draw(st.lists(st.one_of(special, st.floats(width=16)), min_size=1, max_size=40))
    k = data.draw(st.integers(1, len(row)))
    check(torch.tensor([row], dtype=torch.float64).to(data.draw(st.sampled_from(DTYPES))), k)


@settings(max_examples=60, deadline=None)
@given(
    n_latents=st.integers(1, 6000),
    density=st.floats(0, 1),
    levels=st.sampled_from([1, 2, 5, 100, 10**6]),
    offset=st.floats(-3, 3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_long_rows_with_ties(n_latents, density, levels, offset, dtype, seed):
    normal = torch.randn(3, n_latents, generator=torch.Generator().manual_seed(seed))
    pre = (normal * levels).round() / levels + offset
    check(pre.to(dtype), max(1, round(density * n_latents)))


def test_strided_rows():
    noise = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    check(noise[:, 7:290], 20)  # rows apart and not aligned
    check(noise[::3], 20)
    check(noise[:, ::2], 20)
    check(noise.T, 9)
    check(noise[:1].expand(4, -1), 20)


def test_no_tokens():
    values, indices = native.select(torch.empty(0, 10), 3)
    assert values.shape == indices.shape == (0, 3)


def test_flushed_denormals_are_still_selected():
    pre = torch.tensor([[1e-40, -1.0, 2e-40, 0.0]])
    torch.set_flush_denormal(True)
    try:
        _, indices = native.select(pre, 3)
    finally:
        torch.set_flush_denormal(False)
    assert indices.tolist() == [[0, 2, -1]]


def test_threads_make_no_difference(threads):
    pre = torch.randn(200, 3000, generator=torch.Generator().manual_seed(0))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(native.select(pre, 150))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_rows_further_apart_than_int32():
    try:
        store = torch.empty(2**31 + 200, dtype=torch.bfloat16)  # pages that are never written take no memory
    except RuntimeError:
        pytest.skip("not enough address space")
    pre = store.as_strided((2, 100), (2**31 + 50, 1))
    pre.copy_(torch.randn(2, 100, generator=torch.Generator().manual_seed(0)))
    check(pre, 10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keep_top(dtype):
    pre = torch.stack(list(adversarial_rows(400, dtype).values()))
    values, indices = reference.select(pre, 20)
    expected = dense(values, indices, 400)
    torch.ops.tide_native.keep_top_(pre, 20)
    assert torch.equal(pre.isnan(), expected.isnan())
    assert torch.equal(pre.nan_to_num(1.0), expected.nan_to_num(1.0))


def test_bad_input_is_refused():
    pre = torch.randn(3, 5)
    for k in (0, 6):
        with pytest.raises(RuntimeError, match=f"k is {k}, not from 1 to 5"):
            native.select(pre, k)
    with pytest.raises(RuntimeError, match="pre is not a matrix"):
        native.select(pre[0], 1)
    with pytest.raises(RuntimeError, match="pre has a dtype that is not served"):
        native.select(pre.double(), 1)
    with pytest.raises(RuntimeError, match="columns of pre do not lie side by side"):
        torch.ops.tide_native.keep_top_(pre.T, 1)
