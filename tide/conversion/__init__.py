"""Sparse autoencoders of other libraries, read and written: :func:`read_sae` and :func:`write_sae`."""

from tide.conversion.about import Exported, Imported, Origin
from tide.conversion.convert import LIBRARIES, library_of, read_sae, write_sae

__all__ = ["LIBRARIES", "Exported", "Imported", "Origin", "library_of", "read_sae", "write_sae"]
