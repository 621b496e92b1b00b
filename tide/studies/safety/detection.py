"""Whether an image is going to show a concept, told by few latents, and by what needs no trained dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tide.interpretation import Annotated, fit_detectors
from tide.sae import TIDE
from tide.studies.baselines import linear_readout, random_dictionary

#: Latents, neurons or components that each detector reads.
READ = 32


def detection(model: TIDE, fit: Annotated, held_out: Annotated, concepts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> concept -> AUROC over the held-out images at the first timestep and on average.

    Beside the model's latents: raw neurons and principal components, each as two latents for its two signs, and a TopK
    dictionary of the model's size with random directions.
    """
    rows = fit.x.flatten(0, 2).float()
    sources = {
        "latents": model,
        "raw neurons": linear_readout(torch.eye(rows.shape[1])),
        "principal components": linear_readout(_components(rows)),
        "random dictionary": random_dictionary(model),
    }
    return {name: _areas(source, fit, held_out, concepts) for name, source in sources.items()}


def _areas(source: TIDE, fit: Annotated, held_out: Annotated, concepts: Sequence[str]) -> dict[str, Any]:
    found = fit_detectors(source, fit, held_out, concepts, per="image", n_latents=READ)
    return {name: {"first": each.auroc[0], "mean": each.mean_auroc} for name, each in found.items()}


def _components(rows: Tensor) -> Tensor:
    """The principal directions of ``rows``, strongest first, ``[d_model, d_model]``."""
    centred = rows - rows.mean(0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0)
