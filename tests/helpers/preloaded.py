"""What processes of a test import before they are copied: what takes seconds."""

from __future__ import annotations

import torch.distributed.checkpoint
import torch.distributed.tensor

import tide.training

__all__ = ["tide", "torch"]
