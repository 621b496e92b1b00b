"""An index of what an autoencoder learnt: made once in one pass over images, then opened from disk in parts."""

from tide.index.atlas_files import write_atlas_files
from tide.index.building import build_index
from tide.index.layout import index_of, sizes_in_words
from tide.index.reading import Index

__all__ = ["Index", "build_index", "index_of", "sizes_in_words", "write_atlas_files"]
