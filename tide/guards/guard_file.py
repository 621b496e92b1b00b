"""Guards on disk: a folder with ``guard.json``, ``guard.safetensors`` and the latents that are read in ``latents``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from tide.editing import Steer
from tide.editing.where import Detector, Where
from tide.errors import TideError
from tide.files import (
    check_tensors,
    json_writer,
    new_folders,
    read_json,
    read_tensors,
    replace_files,
    tensors_writer,
)
from tide.guards.definition import Guard, MadeFor
from tide.guards.refuge import Refuge
from tide.guards.words import Words
from tide.provenance import versions
from tide.sae import TIDE
from tide.sae.checkpoint import checkpoint_files

DESCRIBED, TENSORS, LATENTS = "guard.json", "guard.safetensors", "latents"
#: The format of the folder; a later one that is read differently gets another number.
FORMAT = 1
REMEDY = "make the guard again"
#: No tensor of a guard has a side of this length, or more sides than these.
_LARGEST, _MOST_SIDES = 2**20, 3


class _MadeFor(TypedDict):
    family: str
    block: int
    tensor: str
    d_model: int
    weights: str


class _Where(TypedDict):
    grow: int
    smooth: int
    low: float
    least: int
    invert: bool


class _Described(TypedDict):
    format: int
    concept: str
    put: str | None
    patience: int
    made_for: _MadeFor
    where: _Where | None
    shapes: dict[str, list[int]]
    factor: float | None
    validated: dict[str, Any]
    versions: dict[str, str]


def save_guard(folder: str | Path, guard: Guard) -> None:
    """Writes ``guard`` into ``folder``: all of it or nothing.

    Of the SAE only the latents that are read are kept, except of TopK's, whose latents compete. Raises
    :class:`~tide.errors.TideError` for a guard whose two detectors read different SAEs, a mask within others, and a
    folder that cannot be written.
    """
    folder = Path(folder)
    if guard.where is not None and (len(guard.where.detectors) != 1 or guard.where.within is not None):
        raise TideError("a guard is saved with one detector of tokens and no mask within; leave the others off")
    model, detectors = _small(guard)
    tensors = _tensors(guard, detectors)
    own = guard.where
    where = None if own is None else {name: getattr(own, name) for name in _Where.__annotations__}
    described = {
        "format": FORMAT,
        "concept": guard.concept,
        "put": guard.put,
        "patience": guard.patience,
        "made_for": asdict(guard.made_for),
        "where": where,
        "shapes": {name: list(value.shape) for name, value in tensors.items()},
        "factor": None if guard.what is None else guard.what.factor,
        "validated": dict(guard.validated),
        "versions": versions(),
    }
    written = {folder / TENSORS: tensors_writer(tensors), folder / DESCRIBED: json_writer(described)}
    latents = checkpoint_files(model.config, model.state_dict(), folder / LATENTS)
    with new_folders(folder, folder / LATENTS):
        replace_files({**latents, **written})


def load_guard(folder: str | Path, device: str | torch.device = "cpu") -> Guard:
    """The guard in ``folder``, its latents on ``device``.

    Raises :class:`~tide.errors.TideError` where there is none, or a damaged one, or one of a later format.
    """
    folder = Path(folder)
    if not (folder / DESCRIBED).is_file():
        raise TideError(f"{folder} holds no guard; make one with `tide guard make --out {folder}`")
    described = read_json(folder / DESCRIBED, _Described)
    if described["format"] != FORMAT:
        raise TideError(f"{folder} holds a guard of format {described['format']}, and {FORMAT} is read; {REMEDY}")
    tensors = read_tensors(folder / TENSORS, "the guard")
    shapes = described["shapes"].values()
    if any(len(shape) > _MOST_SIDES or not all(0 <= n < _LARGEST for n in shape) for shape in shapes):
        raise TideError(f"{folder / DESCRIBED}: a shape is no shape of a tensor; {REMEDY}")
    like = {name: torch.empty(shape, device="meta") for name, shape in described["shapes"].items()}
    integers = {name: value.to(torch.int64) for name, value in like.items() if name.endswith(".features")}
    flags = {name: value.to(torch.bool) for name, value in like.items() if name == "refuge.mask"}
    check_tensors(folder / TENSORS, tensors, {**like, **integers, **flags}, remedy=REMEDY, any_float=True)
    model = TIDE.from_pretrained(folder / LATENTS).to(device).requires_grad_(False)
    try:
        return _guard(described, tensors, model)
    except KeyError as error:
        raise TideError(f"{folder / TENSORS} lacks {error.args[0]}; {REMEDY}") from None


def _small(guard: Guard) -> tuple[TIDE, dict[str, Detector]]:
    """A model with the latents that the detectors read, and the detectors on it, by their names."""
    detectors = {"when": guard.when}
    if guard.where is not None:
        detectors["where"] = guard.where.detectors[0]
    model = guard.when.model
    if any(each.model is not model for each in detectors.values()):
        raise TideError("the two detectors of a guard read different SAEs; make both with one")
    if model.config.activation == "topk":
        return model, detectors
    read = sorted({f for each in detectors.values() for f in each.features.tolist()})
    small = model.only(read)
    places = {feature: i for i, feature in enumerate(read)}
    moved = {
        name: replace(each, model=small, features=torch.tensor([places[f] for f in each.features.tolist()]))
        for name, each in detectors.items()
    }
    return small, moved


def _tensors(guard: Guard, detectors: Mapping[str, Detector]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, each in detectors.items():
        found |= {f"{name}.features": each.features, f"{name}.timesteps": each.timesteps.float()}
        found |= {f"{name}.weights": each.weights.float(), f"{name}.thresholds": each.thresholds.float()}
    if guard.words is not None:
        found |= {"words.down": guard.words.down.half(), "words.up": guard.words.up.half()}
    if guard.refuge is not None:
        found |= {"refuge.states": guard.refuge.states.half(), "refuge.mask": guard.refuge.mask}
    if guard.what is not None:
        found |= {"what.timesteps": guard.what.timesteps.float(), "what.direction": guard.what.direction.half()}
    return found


def _guard(described: _Described, tensors: Mapping[str, Tensor], model: TIDE) -> Guard:
    def detector(name: str) -> Detector:
        parts = [tensors[f"{name}.{part}"] for part in ("features", "timesteps", "weights", "thresholds")]
        return Detector(model, *parts)

    options, factor = described["where"], described["factor"]
    where = None
    if options is not None:
        where = Where((detector("where"),), **{name: options[name] for name in _Where.__annotations__})  # type: ignore[literal-required]
    what = None
    if factor is not None:
        what = Steer(tensors["what.timesteps"], tensors["what.direction"].float(), factor)
    words = refuge = None
    if "words.down" in tensors:
        words = Words(tensors["words.down"].float(), tensors["words.up"].float())
    if "refuge.states" in tensors:
        refuge = Refuge(tensors["refuge.states"].float(), tensors["refuge.mask"])
    return Guard(
        described["concept"],
        described["put"],
        detector("when"),
        MadeFor(**described["made_for"]),
        words=words,
        refuge=refuge,
        where=where,
        what=what,
        patience=described["patience"],
        validated=described["validated"],
    )
