"""An index of what an autoencoder learnt: made once in one pass over images, then opened from disk in parts.

Names are loaded when they are first used: opening an index needs no pipeline's libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tide.deferred import deferred

if TYPE_CHECKING:
    from tide.index.atlas_files import write_atlas_files
    from tide.index.building import build_index
    from tide.index.layout import index_of, sizes_in_words
    from tide.index.reading import Index

__all__ = ["Index", "build_index", "index_of", "sizes_in_words", "write_atlas_files"]

__getattr__, __dir__ = deferred(
    __name__,
    {
        "atlas_files": "write_atlas_files",
        "building": "build_index",
        "layout": "index_of sizes_in_words",
        "reading": "Index",
    },
)
