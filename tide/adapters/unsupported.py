"""What is said of a pipeline that no adapter serves: what it draws with, and what can be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from tide.adapters.spec import Spec

#: What every name of a transformer's class holds, and so says nothing of the model.
_USUAL = ("Transformer", "2D", "3D", "Model")


def why_not(pipeline: str, parts: Mapping[str, str], specs: Sequence[Spec], transformer: Any = None) -> str:
    """The line for a pipeline class and the classes of its ``parts``, by name.

    ``specs``: of the families that there are; ``transformer``: the model, where it is loaded.
    """
    name = parts.get("transformer")
    if name is None:
        return _without_transformer(pipeline, parts)
    near = nearest(name, specs, transformer)
    return (
        f"{name} has no adapter; the nearest family is {near.family} ({near.transformer}). To add one, let "
        "`tide adapters probe --pipeline P --write my_family.py` propose it (docs/adapters.md), and name the file with "
        "--adapter (in Python: import it first)"
    )


def nearest(name: str, specs: Sequence[Spec], transformer: Any = None) -> Spec:
    """The family whose transformer is most like the class ``name``, and like the model as far as it is loaded."""
    return max(specs, key=lambda spec: _likeness(name, spec.transformer) + _structure(spec, transformer))


def _likeness(name: str, other: str) -> float:
    """How alike two names are; a common beginning counts twice, because that is the model's name."""
    one, two = _own(name), _own(other)
    common = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return SequenceMatcher(None, one, two).ratio() + common / max(len(one), len(two))


def _own(name: str) -> str:
    for each in _USUAL:
        name = name.replace(each, "")
    return name.lower()


def _structure(spec: Spec, transformer: Any) -> float:
    """The share of the modules that the spec names which the model has as well."""
    if transformer is None:
        return 0.0
    there = {path for path, _ in transformer.named_modules()}
    named = [each.path for each in spec.blocks]
    named += [f"{each.path}.0.{part}" for each in spec.blocks for part in (each.attention, each.feed_forward) if part]
    named += [spec.embedding.path] if spec.embedding is not None else []
    return sum(each in there for each in named) / len(named)


def _without_transformer(pipeline: str, parts: Mapping[str, str]) -> str:
    unet = next((kind for name, kind in parts.items() if name == "unet" or "unet" in kind.lower()), None)
    instead = "use a pipeline of one of the families that `tide adapters` lists (docs/adapters.md)"
    if unet is not None:
        return f"{pipeline} draws with a UNet ({unet}), and TIDE hooks diffusion transformers only; {instead}"
    if "Pipeline" in pipeline:
        return f"{pipeline} has no diffusion transformer, and TIDE hooks nothing else; {instead}"
    return f"a {pipeline} is not a pipeline with a transformer; give a loaded one, or tide.load_adapter its name"
