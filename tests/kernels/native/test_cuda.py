"""The CUDA kernels' block algorithms, emulated on the CPU: this needs a C++ compiler but no GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers.codes import dense
from tide_kernels import reference
from tide_kernels.testing import adversarial_rows, poisoned

HERE = Path(__file__).parent
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("emulated") / "cuda.so"
    include = HERE.parents[2] / "csrc" / "cuda"
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([*command, str(HERE / "emulated_cuda.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


def select(emulated, pre, k, cached, in_place):
    rows, n_latents = pre.shape
    values = poisoned((rows, k), pre.dtype)
    indices = None if in_place else poisoned((rows, k), torch.int32)
    sizes = map(ctypes.c_int64, (rows, n_latents, k))
    emulated.emulated_select(FORMATS[pre.dtype], pointer(pre), *sizes, pointer(values), pointer(indices), int(cached))
    return pre if in_place else (values, indices)


def assert_same(actual, expected):
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(1.0), expected.nan_to_num(1.0))


@pytest.mark.parametrize("cached", [True, False], ids=["row in shared memory", "row in memory"])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("n_latents", "k"), [(1, 1), (16, 16), (97, 5), (300, 299), (1100, 55)], ids=lambda size: str(size)
)
def test_select(emulated, n_latents, k, dtype, cached):
    pre = torch.stack(list(adversarial_rows(n_latents, dtype).values()))
    expected_values, expected_indices = reference.select(pre, k)
    values, indices = select(emulated, pre, k, cached, in_place=False)
    assert torch.equal(indices, expected_indices)
    assert_same(values, expected_values)
    assert_same(select(emulated, pre.clone(), k, cached, in_place=True), kept(pre, k))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_select_with_ties_across_tiles(emulated, dtype):
    pre = (torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)) * 2).round().to(dtype)
    for k in (1, 700, 1500, 4000):
        expected = reference.select(pre, k)
        actual = select(emulated, pre, k, cached=True, in_place=False)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def select_in_registers(emulated, pre, k, chunks, in_place):
    rows, n_latents = pre.shape
    values = poisoned((rows, k), pre.dtype)
    indices = None if in_place else poisoned((rows, k), torch.int32)
    sizes = map(ctypes.c_int64, (rows, n_latents, k))
    arrays = map(pointer, (values, indices))
    emulated.emulated_registers(FORMATS[pre.dtype], pointer(pre), *sizes, *arrays, chunks)
    return pre if in_place else (values, indices)


def check_in_registers(emulated, pre, k, chunks=6):
    expected_values, expected_indices = reference.select(pre, k)
    values, indices = select_in_registers(emulated, pre, k, chunks, in_place=False)
    assert torch.equal(indices, expected_indices)
    assert_same(values, expected_values)
    assert_same(select_in_registers(emulated, pre.clone(), k, chunks, in_place=True), kept(pre, k))


def kept(pre, k):
    return dense(*reference.select(pre, k), pre.shape[1])


HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("chunks", [6, 18])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("n_latents", "k"), [(8, 1), (8, 8), (96, 5), (1536, 77), (1544, 1543), (4000, 200)])
def test_rows_in_registers(emulated, n_latents, k, dtype, chunks):
    # Each row is searched from the threshold of the one before, which tells nothing about it.
    check_in_registers(emulated, torch.stack(list(adversarial_rows(n_latents, dtype).values())), k, chunks)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("k", [1, 150, 700, 1500, 2900])
def test_ties_across_warps_and_chunks_in_registers(emulated, dtype, k):
    pre = (torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)) * 2).round().to(dtype)
    check_in_registers(emulated, pre, k)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.3, 3.0, 1e-4, 1e4])
def test_thresholds_near_and_far_from_the_row_before(emulated, dtype, ratio):
    pre = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    pre[1] *= ratio
    check_in_registers(emulated, pre.to(dtype), 20)


@pytest.mark.parametrize("below", range(90, 100))
def test_thresholds_at_the_edges_of_the_histogram(emulated, below):
    # A row of one value each, a given number of keys from the guess, of which 96 below it and 158 above are the last.
    one = torch.tensor(1.0, dtype=torch.bfloat16).view(torch.int16)
    keys = torch.stack([one, one - below, one, one + 252 - below]).to(torch.int16)
    check_in_registers(emulated, keys[:, None].expand(-1, 64).contiguous().view(torch.bfloat16), 5)
