"""Effects on disk, with the SAE they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tide.editing.target_file import sae_record
from tide.errors import TideError
from tide.files import check_tensors, open_tensors, parse_json, read_tensors, replace_file, tensors_writer
from tide.files.writing import Write
from tide.interpretation.effect.effects import Effects
from tide.provenance import check_unchanged
from tide.sae.model import TIDE

#: The entry of the file's metadata that describes the SAE.
KEY = "tide_effects"
_REMEDY = "record the effects again"


def effects_writer(effects: Effects, model: TIDE) -> Write:
    """A function that writes :func:`save_effects`'s file, for :func:`~tide.files.replace_files`."""
    tensors = {name: value for name, value in vars(effects).items() if value is not None}
    return tensors_writer(tensors, {KEY: json.dumps(sae_record(model))})


def save_effects(path: str | Path, effects: Effects, model: TIDE) -> None:
    """Writes the tables as one safetensors file, the SAE's block, sizes and fingerprint in its metadata.

    ``path`` gets the tables of ``effects``, which are of ``model``.
    """
    replace_file(Path(path), effects_writer(effects, model))


def load_effects(path: str | Path, model: TIDE) -> Effects:
    """The effects in ``path``, of latents of ``model``.

    Raises :class:`~tide.errors.TideError` if the file does not hold effects or is damaged, or if they are of an SAE
    with another family, block, size or other weights.
    """
    path = Path(path)
    with open_tensors(path, "the file of effects") as file:
        kept = (file.metadata() or {}).get(KEY)
    if kept is None:
        raise TideError(f"{path} holds no effects; make some with `tide effect`")
    before = parse_json(kept, f"{path}'s description", dict[str, Any])
    now = sae_record(model)
    recorded = {name: before.get(name) for name in now}
    check_unchanged(recorded, now, f"{path} was recorded with another SAE", remedy=_REMEDY)
    tensors = read_tensors(path, "the file of effects")
    n_steps = len(tensors["timesteps"]) if tensors.get("timesteps", torch.empty(())).ndim == 1 else 0
    table = torch.empty(n_steps, model.n_latents, device="meta")
    like = {"timesteps": table[:, 0], "attribution": table, "activation": table}
    if "integrated" in tensors:
        like["integrated"] = table
    if "ablated" in tensors:
        n_ablated = tensors["ablated"].numel()
        like["ablated"] = torch.empty(n_ablated, dtype=torch.int64, device="meta")
        like["ablation"] = table[:, :1].expand(-1, n_ablated)
    check_tensors(path, tensors, like, remedy=_REMEDY, any_float=True)
    named = tensors.get("ablated")
    if not n_steps or (named is not None and len(named) and not 0 <= named.min() <= named.max() < model.n_latents):
        raise TideError(f"{path} holds no effects of {model.n_latents} latents; {_REMEDY}")
    return Effects(**{name: value if name == "ablated" else value.float() for name, value in tensors.items()})
