"""Kernels of sparse autoencoders with timestep modulation: tensors in, tensors out.

Importing this package needs only torch, touches no device and prints nothing.
"""

from tide_kernels.dispatch import BackendError, backend_status, register_backend
from tide_kernels.functional import decode, encode_threshold, encode_topk, modulate, tide_loss
from tide_kernels.losses import LossTerms, LossWeights
from tide_kernels.memory import empty_cache
from tide_kernels.options import LossOptions
from tide_kernels.ranks import Ranks

__all__ = [
    "BackendError",
    "LossOptions",
    "LossTerms",
    "LossWeights",
    "Ranks",
    "backend_status",
    "decode",
    "empty_cache",
    "encode_threshold",
    "encode_topk",
    "modulate",
    "register_backend",
    "tide_loss",
]
