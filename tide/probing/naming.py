"""Names of families, and of classes in them."""

from __future__ import annotations

import re
from collections.abc import Container

#: What class names of transformers end with besides the model's name.
_ENDS = r"(Image|Video)?(Transformer)?([23]D)?(Model)?$"


def stem(transformer: str) -> str:
    """The model's name in the name of its transformer's class: Flux of FluxTransformer2DModel."""
    return re.sub(_ENDS, "", transformer) or transformer


def family_name(transformer: str, taken: Container[str]) -> str:
    """A name for the family of a transformer that no other family has."""
    name = re.sub(r"\W", "", stem(transformer)).lower()
    name = name if name.isidentifier() else f"family_{name}"
    found, i = name, 2
    while found in taken:
        found, i = f"{name}_{i}", i + 1
    return found
