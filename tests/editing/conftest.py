"""A TIDE of the tiny pipeline's block 6, and the pipeline's unedited images."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.edit_samples import BLOCK, draw, make_sae
from tide.sae import TIDE


@pytest.fixture(scope="session")
def sae(alpha) -> TIDE:
    return make_sae(alpha, BLOCK)


@pytest.fixture(scope="session")
def plain(alpha) -> dict[float, torch.Tensor]:
    """Unedited images, by guidance scale."""
    return {guidance: draw(alpha, guidance=guidance) for guidance in (1.0, 3.0)}
