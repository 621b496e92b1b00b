"""Fixtures of the kernel tests."""

import pytest
import torch

from tests.helpers.lost_device import pytest_runtest_makereport, pytest_runtest_protocol  # noqa: F401 (hooks)


@pytest.fixture(params=["sparse", "dense"])
def regime(request):
    return request.param


@pytest.fixture
def threads():
    """A function that sets the number of threads; the old number is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
