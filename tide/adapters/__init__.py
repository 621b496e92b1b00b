"""Model families: where to hook a diffusion transformer and where its modulation comes from."""

from tide.adapters import families as _families  # noqa: F401
from tide.adapters.base import Adapter, Block, Chunk
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.hooks import Call, Tap, of_prompt, run_until, tap
from tide.adapters.own import import_adapters, import_code
from tide.adapters.pipelines import allow_pipeline
from tide.adapters.registry import adapter_for, register
from tide.adapters.spec import Blocks, Embedding, Spec, Text

__all__ = [
    "Adapter",
    "Block",
    "Blocks",
    "Call",
    "Chunk",
    "DeclaredAdapter",
    "Embedding",
    "Spec",
    "Tap",
    "Text",
    "adapter_for",
    "allow_pipeline",
    "import_adapters",
    "import_code",
    "of_prompt",
    "register",
    "run_until",
    "tap",
]
