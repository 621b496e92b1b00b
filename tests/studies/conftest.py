"""A bench of a handful of images."""

from __future__ import annotations

import pytest

from tide.studies.bench import Bench, DataSizes

TINY = DataSizes(
    train_images=12, held_out_images=4, wide_images=24, loss_prompts=2, loss_timesteps=2, train_rows=512,
    batch_tokens=64,
)  # fmt: skip


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench(TINY, say=lambda text: None)
