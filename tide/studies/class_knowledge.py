"""What editing methods know of the values of scenes' attributes, from training scenes: means, and a bank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from torch import Tensor

from tide.adapters import Adapter
from tide.editing.bank import Bank
from tide.editing.bank_file import bank_writer, load_bank
from tide.files import replace_files
from tide.interpretation.banking import record_bank
from tide.interpretation.concepts import Annotated
from tide.interpretation.profiles import ConceptProfiles, concept_profiles
from tide.interpretation.timesteps import spread_timesteps
from tide.sae.model import TIDE
from tide.scenes.annotate import N_SAMPLING_STEPS, annotated_scenes, concept_masks
from tide.scenes.scene import ATTRIBUTES, Scene, Split, prompts, scenes
from tide.studies.baselines import linear_readout, random_dictionary
from tide.studies.bench import prepared_scenes
from tide.studies.scene_bank import scene_difference
from tide.studies.tasks import EditTask

#: Ground that lies in the light: the counterpart of the concept "shadow".
LIT = "lit ground"

#: Timesteps of a bank, its tokens of each concept and of each pair of words, and the scenes of each pair.
TIMESTEPS, TOKENS, REFERENCES = 10, 256, 16
#: What says where the source is: the model's latents, those of a dictionary that was never trained, raw neurons.
Told = Literal["latents", "random latents", "neurons"]


def concepts_of(task: EditTask) -> tuple[str, str]:
    """The concepts of the task's source and target."""
    return _concept(task.source), _concept(task.target)


def _concept(value: str) -> str:
    return {"with": "shadow", "without": LIT}.get(value, value)


#: The concepts of all values.
CONCEPTS = tuple(_concept(value) for values in ATTRIBUTES.values() for value in values)


def _with_lit(items: Sequence[Scene], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """``masks`` of the concepts of all values."""
    lit = [masks[scene.ground][i] & (scene.shadow == "without") for i, scene in enumerate(items)]
    return {name: mask for name, mask in (masks | {LIT: torch.stack(lit)}).items() if name in CONCEPTS}


def scene_profiles(adapter: Adapter, model: TIDE, *, n_images: int = 256, seed: int = 0) -> ConceptProfiles:
    """Profiles of every attribute value over training scenes, at every step of the sampling run."""
    pairs = prompts("train", n_images, seed)
    items = [scene for scene, _ in pairs]
    data = prepared_scenes(adapter, pairs)
    masks = _with_lit(items, concept_masks(items, adapter.token_grid(*data[0].latents.shape[-2:])))
    return concept_profiles(adapter, model, data, masks, adapter.sampling_timesteps(N_SAMPLING_STEPS), seed=seed)


#: Banks of the same images: that of the model, and those that only tell where a concept is.
ClassBanks = Mapping[Told, tuple[TIDE, Bank]]


def class_banks(
    adapter: Adapter, model: TIDE, tasks: Iterable[EditTask], folder: Path, *, n_images: int, seed: int = 0
) -> ClassBanks:
    """Banks of every attribute value from ``n_images`` training scenes, with the contrasts of the words that ``tasks``
    exchange; kept in ``folder``.

    Raises :class:`~tide.errors.TideError` if the folder's are of another model.
    """
    readers: dict[Told, TIDE] = {
        "latents": model,
        "random latents": random_dictionary(model),
        "neurons": linear_readout(torch.eye(model.d_model)),
    }
    words = sorted({(task.source, task.target) for task in tasks})
    folder = folder / f"seed-{seed}-of-{n_images}-images-and-{len(words)}-pairs"
    paths = {told: folder / f"{told.replace(' ', '-')}.safetensors" for told in readers}
    folder.mkdir(parents=True, exist_ok=True)
    # Of several processes that ask at once, one records and the others wait.
    with FileLock(folder / "lock"):
        if not all(path.is_file() for path in paths.values()):
            recorded = _recorded(adapter, readers, words, n_images, seed)
            replace_files({paths[told]: bank_writer(bank) for told, bank in recorded.items()})
    banks = {told: (reader, load_bank(paths[told])) for told, reader in readers.items()}
    for reader, bank in banks.values():
        bank.check_model(reader)
    return banks


def _recorded(
    adapter: Adapter, readers: Mapping[Told, TIDE], words: Iterable[tuple[str, str]], n_images: int, seed: int
) -> dict[Told, Bank]:
    model = readers["latents"]
    at = spread_timesteps(adapter, TIMESTEPS)
    block = adapter.resolve_block(model.config.trained_block)

    def annotated(split: Split, seed: int) -> tuple[list[Scene], Annotated]:
        items = list(scenes(split, n_images, seed))
        found = annotated_scenes(adapter, items, [block], at, seed=seed)[block]
        return items, replace(found, masks=_with_lit(items, found.masks))

    items, fit = annotated("train", seed)
    _, held_out = annotated("dev", seed + 1)
    contrasts = {
        (_concept(source), _concept(target)): scene_difference(
            adapter,
            block,
            (source, target),
            items,
            fit.masks[_concept(target)],
            at,
            n_tokens=TOKENS,
            seed=seed,
            n_references=REFERENCES,
        )
        for source, target in words
    }
    return {
        told: record_bank(
            reader, fit, held_out, CONCEPTS, contrasts if reader is model else None, n_tokens=TOKENS, seed=seed
        ).bank
        for told, reader in readers.items()
    }
