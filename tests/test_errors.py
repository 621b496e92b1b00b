"""Errors of allocators are told from bugs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tide.errors import TideError, out_of_memory


@pytest.mark.parametrize(
    "allocate",
    [
        pytest.param(lambda: torch.empty(10**15), id="torch"),
        pytest.param(lambda: torch.empty(10**12, 10**12), id="torch: more bytes than a number holds"),
        pytest.param(lambda: np.zeros(10**16), id="NumPy"),
        pytest.param(lambda: bytearray(10**16), id="Python"),
    ],
)
def test_memory_that_no_machine_has(allocate: Callable[[], object]):
    with pytest.raises((RuntimeError, MemoryError)) as found:
        allocate()
    assert out_of_memory(found.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.04 GB, max allowed: 9.07 GB)."),
    ],
    ids=["CUDA", "Apple"],
)
def test_a_gpu_that_is_full(error: Exception):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape '[2]' is invalid for input of size 3"), TideError("out of memory"), OSError(28, "no space")],
    ids=["a bug", "bad input", "a full disk"],
)
def test_other_errors(error: Exception):
    assert not out_of_memory(error)
