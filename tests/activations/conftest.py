"""A small store on the disk and at a URL, for the tests of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.remote import URL, Troubled
from tests.helpers.store_batches import go_on
from tide.activations import ActivationStore


@pytest.fixture
def local(tmp_path) -> Path:
    """Three shards of two samples."""
    go_on(tmp_path / "local")
    return tmp_path / "local"


@pytest.fixture
def store(local) -> ActivationStore:
    """The same at a URL."""
    Troubled().put(str(local), "/bucket/acts", recursive=True)
    return ActivationStore(URL)
