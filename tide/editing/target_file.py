"""Targets on disk: latents to edit towards, with the SAE they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tide.editing.edits import Target
from tide.errors import TideError
from tide.files import replace_file
from tide.fingerprint import fingerprint
from tide.sae.model import TIDE

#: Under which the SAE is described in the file's metadata.
KEY = "tide_target"


def _sae(model: TIDE) -> dict[str, Any]:
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
    """Writes ``timesteps`` and ``values`` as one safetensors file, the SAE's block and sizes in its metadata."""
    tensors = {"timesteps": target.timesteps.float().cpu(), "values": target.values.cpu().contiguous()}
    metadata = {KEY: json.dumps(_sae(model))}
    replace_file(Path(path), lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_target(path: str | Path, model: TIDE) -> Target:
    """The target in ``path``, for edits with ``model``.

    Raises :class:`~tide.errors.TideError` if the file is none, or holds latents of an SAE of another family, block or
    size, or with other weights.
    """
    try:
        with safe_open(path, "pt") as file:
            kept = (file.metadata() or {}).get(KEY)
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TideError(f"{path} is not a readable safetensors file ({error}); give another target") from None
    if kept is None or not {"timesteps", "values"} <= tensors.keys():
        raise TideError(f"{path} holds no target; make one with `tide edit --save-target`")
    before, now = json.loads(kept), _sae(model)
    for name, value in now.items():
        if before.get(name) != value:
            raise TideError(
                f"{path} was recorded with another SAE ({name} {before.get(name)}, this one has {value}); record it "
                "with this SAE"
            )
    return Target(tensors["timesteps"], tensors["values"])
