"""The bits of floats as integers, whose order is that of the non-negative floats."""

from __future__ import annotations

import torch

# As bits: +infinity, after which comes the key of all NaNs.
INFINITY_BITS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}
INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
