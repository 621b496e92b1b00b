"""Pipelines in folders whose classes are not all of diffusers, but of modules that registered an adapter."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import LegacyModelMixin

from tide.adapters.installed import import_installed
from tide.adapters.registry import adapter_class, own_class, specs
from tide.adapters.standins import replaced
from tide.adapters.trust import is_known, is_part, place_of
from tide.adapters.unsupported import why_not
from tide.errors import TideError


def check_served(name: str, index: Mapping[str, Any], *, unknown: bool = False) -> None:
    """Raises :class:`~tide.errors.TideError` if ``index``, the model_index.json of the pipeline ``name``, says that no
    adapter serves it: before gigabytes are downloaded or read. What it leaves open shows in the loaded pipeline. With
    ``unknown`` it need only have a transformer."""
    pipeline = index.get("_class_name")
    if index and not isinstance(pipeline, str | list):
        raise TideError(f"the model_index.json of {name} does not name its pipeline's class; copy or download it again")
    if not isinstance(pipeline, str):
        return  # it brings its own code, or could not be read: loading says what is wrong
    parts = {part: str(value[-1]) for part, value in index.items() if is_part(part, value)}
    if _own_pipeline(pipeline) is None and not hasattr(diffusers, pipeline):
        named = "the module that defines it and registers its adapter with --adapter"
        raise TideError(
            f"{name} is a {pipeline}, which diffusers {diffusers.__version__} does not have; update diffusers, or name "
            f"{'the module that defines it with --code' if unknown else named}"
        )
    transformer = getattr(diffusers, parts.get("transformer", ""), None)
    if "transformer" in parts and unknown:
        return
    if "transformer" in parts and (transformer is None or issubclass(transformer, LegacyModelMixin)):
        return  # a class of one's own, or one whose config says what it stands for
    if transformer is None or adapter_class(transformer) is None:
        raise TideError(why_not(pipeline, parts, specs()))


def _own_pipeline(name: str) -> type[DiffusionPipeline] | None:
    if hasattr(diffusers, name):
        return None
    found = own_class(name, DiffusionPipeline)
    return found or (own_class(name, DiffusionPipeline) if import_installed() else None)


def load_folder(
    folder: str | Path, index: Mapping[str, Any], *, dtype: torch.dtype, left_out: Container[str] = (), **options: Any
) -> Any:
    """The pipeline of a folder, by :meth:`DiffusionPipeline.from_pretrained` with ``options``.

    That finds the classes of diffusers and transformers. Those of one's own are found here, by their names in the
    modules that registered an adapter, whatever module ``index`` names: a script that saved its pipeline is
    ``__main__`` there.
    """
    name = index.get("_class_name")
    kind: Any = (isinstance(name, str) and _own_pipeline(name)) or DiffusionPipeline
    own = {
        part: loader
        for part, value in index.items()
        if is_part(part, value) and part not in left_out and not is_known(str(value[0]))
        if (loader := own_class(str(value[-1]))) is not None
    }
    loaded = {part: _loaded(loader, place_of(Path(folder), part), dtype) for part, loader in own.items()}
    rest = {part: value for part, value in index.items() if part not in own}
    if not own:
        return kind.from_pretrained(folder, torch_dtype=dtype, **options)
    with replaced(kind, "load_config", lambda *_, **__: dict(rest)):
        return kind.from_pretrained(folder, torch_dtype=dtype, **options, **loaded)


def _loaded(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    if issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)
    return kind.from_pretrained(folder)
