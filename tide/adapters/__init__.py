"""Model families: where to hook a diffusion transformer and where its modulation comes from."""

from tide.adapters.base import Adapter, Block, Chunk, adapter_for, register
from tide.adapters.hooks import Call, Tap, run_until, tap
from tide.adapters.pixart import PixArtAdapter

__all__ = [
    "Adapter",
    "Block",
    "Call",
    "Chunk",
    "PixArtAdapter",
    "Tap",
    "adapter_for",
    "register",
    "run_until",
    "tap",
]
