"""Model families: where to hook a diffusion transformer and where its modulation comes from."""

from tide.adapters.base import Adapter, Block, Chunk
from tide.adapters.dit import DiTAdapter
from tide.adapters.flux import FluxAdapter
from tide.adapters.hooks import Call, Tap, of_prompt, run_until, tap
from tide.adapters.hunyuan import HunyuanDiTAdapter
from tide.adapters.lumina2 import Lumina2Adapter
from tide.adapters.lumina_next import LuminaNextAdapter
from tide.adapters.own import import_adapters
from tide.adapters.pipelines import allow_pipeline
from tide.adapters.pixart import PixArtAdapter
from tide.adapters.registry import adapter_for, register
from tide.adapters.sana import SanaAdapter
from tide.adapters.sd3 import SD3Adapter

__all__ = [
    "Adapter",
    "Block",
    "Call",
    "Chunk",
    "DiTAdapter",
    "FluxAdapter",
    "HunyuanDiTAdapter",
    "Lumina2Adapter",
    "LuminaNextAdapter",
    "PixArtAdapter",
    "SD3Adapter",
    "SanaAdapter",
    "Tap",
    "adapter_for",
    "allow_pipeline",
    "import_adapters",
    "of_prompt",
    "register",
    "run_until",
    "tap",
]
