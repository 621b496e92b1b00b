"""An index of what an autoencoder learnt: made once in one pass over images, then opened from disk in parts."""

from tide.index.building import build_index
from tide.index.layout import index_of, sizes_in_words
from tide.index.reading import Index

__all__ = ["Index", "build_index", "index_of", "sizes_in_words"]
