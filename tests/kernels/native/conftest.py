"""These tests need the compiled library; where it is not built they are skipped with a reason."""

import pytest

from tide_kernels import native


@pytest.fixture(autouse=True, scope="session")
def library():
    reason = native.unavailable()
    if reason is not None:
        pytest.skip(f"native: {reason}")
