"""What tests of several scorers give them."""

from __future__ import annotations

import torch

TEXTS = ["a red house", "two cones", "snow"]
NEEDS_TORCHVISION = "needs torchvision, whose wheels on PyPI do not run beside torch's CPU wheel"


def random_images(n: int = 3, size: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
