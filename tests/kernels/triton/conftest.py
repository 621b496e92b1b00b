"""The Triton backend on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tide_kernels.testing import poisoned

launch = pytest.importorskip("tide_kernels.triton.launch", reason="needs Triton")

collect_ignore_glob = [] if launch.INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True)
def _results_start_as_nan(monkeypatch):
    """An element of a result that no kernel writes shows."""
    monkeypatch.setattr(launch, "empty", lambda *shape, dtype, device: poisoned(shape, dtype, device))


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def normal(device, generator):
    """Normal tensors, made in float64 so that all dtypes see the same numbers."""

    def make(*shape, dtype=torch.float32, size=1.0):
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * size
        return values.to(device=device, dtype=dtype)

    return make
