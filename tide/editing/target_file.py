"""Targets on disk: latents to edit towards, with the SAE they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tide.editing.edits import Target
from tide.errors import TideError
from tide.files import check_tensors, open_tensors, parse_json, read_tensors, replace_file, tensors_writer
from tide.fingerprint import fingerprint
from tide.provenance import check_unchanged
from tide.sae.model import TIDE

#: The entry of the file's metadata that describes the SAE.
KEY = "tide_target"


def sae_record(model: TIDE) -> dict[str, Any]:
    """How files of latents say which SAE they are of."""
    config = model.config
    return {
        "family": config.family,
        "block": config.block,
        "tensor": config.tensor,
        "d_model": config.d_model,
        "n_latents": config.n_latents,
        "weights": fingerprint([model]),
    }


def save_target(path: str | Path, target: Target, model: TIDE) -> None:
    """Writes ``timesteps`` and ``values`` as one safetensors file, the SAE's block and sizes in its metadata.

    ``target`` is of latents of ``model``; the file ``path`` is replaced in one step.
    """
    tensors = {"timesteps": target.timesteps.float(), "values": target.values}
    replace_file(Path(path), tensors_writer(tensors, {KEY: json.dumps(sae_record(model))}))


def load_target(path: str | Path, model: TIDE) -> Target:
    """The target in ``path``, for edits with ``model``.

    Raises :class:`~tide.errors.TideError` if the file does not hold a target or is damaged, or if its latents are of an
    SAE with another family, block, size or other weights.
    """
    path = Path(path)
    with open_tensors(path, "the target") as file:
        kept = (file.metadata() or {}).get(KEY)
    if kept is None:
        raise TideError(f"{path} holds no target; make one with `tide edit --save-target`")
    before = parse_json(kept, f"{path}'s description", dict[str, Any])
    now = sae_record(model)
    recorded = {name: before.get(name) for name in now}
    check_unchanged(recorded, now, f"{path} was recorded with another SAE", remedy="record it with this SAE")
    tensors = read_tensors(path, "the target")
    shape = tensors["values"].shape if "values" in tensors else torch.Size()
    if len(shape) not in (2, 3) or 0 in shape or shape[-1] != model.n_latents:
        raise TideError(f"{path} holds no latents of {model.n_latents} an entry; record the target again")
    like = {"timesteps": torch.empty(shape[0], device="meta"), "values": torch.empty(shape, device="meta")}
    check_tensors(path, tensors, like, remedy="record the target again", any_float=True)
    return Target(tensors["timesteps"].float(), tensors["values"])
