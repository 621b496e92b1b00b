"""Fixtures of the kernel tests."""

import pytest


@pytest.fixture(params=["sparse", "dense"])
def regime(request):
    return request.param
