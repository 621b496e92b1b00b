"""These tests need the compiled library; where it is not built they are skipped with the reason."""

import pytest
import torch

from tide_kernels import native


@pytest.fixture(autouse=True, scope="session")
def library():
    reason = native.unavailable()
    if reason is not None:
        pytest.skip(f"native: {reason}")


@pytest.fixture
def threads():
    """Sets the number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
