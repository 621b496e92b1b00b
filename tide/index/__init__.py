"""An index of what an autoencoder learnt: made once in one pass over images, then opened from disk in parts.

Names are loaded when they are first used: opening an index needs no pipeline's libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tide.index.atlas_files import write_atlas_files
    from tide.index.building import build_index
    from tide.index.layout import index_of, sizes_in_words
    from tide.index.reading import Index

_HOME = {
    "Index": "reading",
    "build_index": "building",
    "index_of": "layout",
    "sizes_in_words": "layout",
    "write_atlas_files": "atlas_files",
}

__all__ = ["Index", "build_index", "index_of", "sizes_in_words", "write_atlas_files"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tide.index.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tide.index' has no attribute {name!r}")
