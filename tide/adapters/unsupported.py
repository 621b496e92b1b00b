"""What is said of a pipeline that no adapter serves: what it draws with, and what can be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: How an adapter of one's own is named to a command, and in Python.
_OWN = "name its module with --adapter (in Python: import it first)"


def why_not(pipeline: str, parts: Mapping[str, str], supported: Sequence[str], families: Sequence[str]) -> str:
    """The line for a pipeline class and the classes of its ``parts``, by name.

    ``supported``: the transformers that have adapters; ``families``: the names of those.
    """
    transformer = parts.get("transformer")
    if transformer is None:
        return _without_transformer(pipeline, parts, families)
    if "3D" in transformer or "Video" in transformer:
        return (
            f"{transformer} is a video transformer, and the adapters here are for images; use a pipeline of one of the "
            f"families {', '.join(families)}, or write an adapter that gives it single frames (docs/adapters.md) and "
            f"{_OWN}"
        )
    return (
        f"{transformer} has no adapter; supported: {', '.join(supported)}. To add one, write it as docs/adapters.md "
        f"shows, and {_OWN}"
    )


def _without_transformer(pipeline: str, parts: Mapping[str, str], families: Sequence[str]) -> str:
    unet = next((kind for name, kind in parts.items() if name == "unet" or "unet" in kind.lower()), None)
    instead = f"use a pipeline of one of the families {', '.join(families)} (docs/adapters.md)"
    if unet is not None:
        return f"{pipeline} draws with a UNet ({unet}), and TIDE hooks diffusion transformers only; {instead}"
    if "Pipeline" in pipeline:
        return f"{pipeline} has no diffusion transformer, and TIDE hooks nothing else; {instead}"
    return f"a {pipeline} is not a pipeline with a transformer; give a loaded one, or tide.load_adapter its name"
