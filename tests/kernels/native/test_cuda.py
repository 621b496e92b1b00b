"""The CUDA kernels' block algorithms, emulated on the CPU: this needs a C++ compiler but no GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tide_kernels import native, reference
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
    spare = pre.new_zeros(len(pre), n_latents + 1)
    spare.scatter_(1, torch.where(expected_indices < 0, n_latents, expected_indices).long(), expected_values)
    assert_same(select(emulated, pre.clone(), k, cached, in_place=True), spare[:, :n_latents])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_select_with_ties_across_tiles(emulated, dtype):
    pre = (torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)) * 2).round().to(dtype)
    for k in (1, 700, 1500, 4000):
        expected = reference.select(pre, k)
        actual = select(emulated, pre, k, cached=True, in_place=False)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("range_tokens", [1, 3, 100])
@pytest.mark.parametrize("ascending", [True, False])
def test_transpose(emulated, ascending, range_tokens):
    n_tokens, n_latents, k = 20, 150, 30
    generator = torch.Generator().manual_seed(0)
    if ascending:
        indices = reference.select(torch.randn(n_tokens, n_latents, generator=generator) - 1, k)[1]
    else:
        indices = torch.randint(-1, n_latents, (n_tokens, k), generator=generator, dtype=torch.int32)
    counts = torch.zeros(-(-n_tokens // range_tokens), n_latents, dtype=torch.int32)
    offsets = poisoned((n_latents + 1,), torch.int64)
    tokens, slots = torch.full((2, n_tokens * k), -1, dtype=torch.int32)
    sizes = map(ctypes.c_int64, (n_tokens, k, n_latents, range_tokens))
    emulated.emulated_transpose(pointer(indices), *sizes, *map(pointer, (counts, offsets, tokens, slots)))
    expected = native.transpose(indices, n_latents)
    used = len(expected.tokens)
    assert torch.equal(offsets, expected.offsets)
    assert torch.equal(tokens[:used], expected.tokens)
    assert torch.equal(slots[:used], expected.slots)
    assert (tokens[used:] == -1).all()
