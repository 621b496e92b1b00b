"""The edits a study compares: a concept's latents moved by TIDE, and the same direction added to raw activations."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.editing import PerImage, Shift, Steer, edit
from tide.interpretation.maps import Contrast, prompt_contrast
from tide.sae.model import TIDE
from tide.scenes.annotate import N_SAMPLING_STEPS, encode_captions, images_of
from tide.scenes.scene import Scene, Split, scenes
from tide.study.edits import EditTask, Method


def swap_word(caption: str, source: str, target: str) -> str:
    """A caption with the source value's word replaced by the target's."""
    return re.sub(rf"\b{source}\b", target, caption)


@dataclass
class ContrastBook:
    """Contrasts of concepts, made when first asked for and kept: what changes inside ``model``'s block when a caption
    says ``target`` instead of ``source``, over rendered scenes of ``split`` at one depth."""

    adapter: Adapter
    model: TIDE
    split: Split = "train"
    n_images: int = 24
    seed: int = 17
    pages: dict[tuple[str, str, str, str], Contrast] = field(default_factory=dict)

    def _images(self, attribute: str, source: str, depth: str) -> list[Scene]:
        # Of 120 combinations a pair (value, depth) holds one in twelve or more, so this many scenes suffice.
        pool = scenes(self.split, 40 * self.n_images, self.seed)
        return [s for s in pool if s[attribute] == source and s.depth == depth][: self.n_images]

    @torch.no_grad()
    def __call__(self, task: EditTask) -> Contrast:
        key = (task.attribute, task.source, task.target, task.scene.depth)
        if key not in self.pages:
            images = self._images(task.attribute, task.source, task.scene.depth)
            captions = [s.caption() for s in images]
            self.pages[key] = prompt_contrast(
                self.adapter,
                self.model,
                self.adapter.encode_images(images_of(images)),
                encode_captions(self.adapter, captions),
                encode_captions(self.adapter, [swap_word(c, task.source, task.target) for c in captions]),
                self.timesteps,
                seed=self.seed,
            )
        return self.pages[key]

    @property
    def timesteps(self) -> Tensor:
        return self.adapter.sampling_timesteps(N_SAMPLING_STEPS)


def tide_method(book: ContrastBook, factor: float, steps: tuple[float, float] | None = None) -> Method:
    """Latents moved from the source concept's to the target's, never below zero."""

    def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
        contrasts = [book(task) for task in tasks]
        change = PerImage(tuple(Shift(c.source, c.target, factor) for c in contrasts))
        return edit(book.adapter.pipe, book.model, change, steps=steps)

    return context


def steer_method(book: ContrastBook, factor: float, steps: tuple[float, float] | None = None) -> Method:
    """The same contrast added to raw activations, without the SAE, at the same block, steps and places."""

    def context(tasks: list[EditTask]) -> AbstractContextManager[Any]:
        contrasts = [book(task) for task in tasks]
        change = Steer(contrasts[0].timesteps, torch.stack([c.direction for c in contrasts], dim=1), factor)
        return edit(book.adapter.pipe, None, change, block=book.model.config.block, steps=steps)

    return context
