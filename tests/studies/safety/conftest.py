"""The bundled pipeline and its judge, loaded once."""

from __future__ import annotations

import pytest

from tide.adapters import Adapter, adapter_for
from tide.scenes.judge import Judge, load_judge
from tide.scenes.pipeline import DATA, load_pipeline


@pytest.fixture(scope="session")
def bundled() -> Adapter:
    if not (DATA / "pipeline").is_dir():
        pytest.skip("needs the bundled pipeline")
    return adapter_for(load_pipeline())


@pytest.fixture(scope="session")
def judge() -> Judge:
    if not (DATA / "judge").is_dir():
        pytest.skip("needs the bundled judge")
    return load_judge()
