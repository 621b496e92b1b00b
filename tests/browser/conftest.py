"""A run with an index, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.indexed_runs import make_indexed_run


@pytest.fixture(scope="session")
def indexed_run(adapter, tmp_path_factory) -> Path:
    return make_indexed_run(adapter, tmp_path_factory.mktemp("runs"))
