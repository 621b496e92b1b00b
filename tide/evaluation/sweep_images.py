"""The images of a layer sweep: those that baselines and probes are fitted to, and those that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tide.activations import Prepared, prepare
from tide.activations.source import Source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length, image_grid
from tide.errors import TideError
from tide.evaluation.block_tokens import token_places
from tide.evaluation.concept_labels import Labels, label_images, label_tokens
from tide.evaluation.table import between, shared
from tide.fingerprint import pipeline_fingerprints
from tide.images.masked import Masked

#: The share of each image's tokens that is read unless asked otherwise, and how many at least: small models have few.
SHARE, LEAST_TOKENS = 1 / 16, 32


class Side(NamedTuple):
    """Encoded ``images``, their ``captions``, and the ``places [images, tokens]`` of the tokens that are read; they are
    the images of ``source`` from number ``first`` on."""

    images: list[Prepared]
    captions: list[str]
    places: Tensor
    source: Source
    first: int

    def masks(self, grid: tuple[int, ...]) -> dict[str, Tensor]:
        """Concept -> which tokens show it, bool ``[images, tokens]``; of a source that knows."""
        assert isinstance(self.source.batches, Masked)
        last = self.first + len(self.captions)
        return {name: mask[self.first :] for name, mask in self.source.batches.masks(last, grid).items()}


@dataclass(frozen=True)
class Sides:
    """The images to fit to, those to measure, and the concepts that they show; None without concepts."""

    fitted: Side
    measured: Side
    labels: Labels | None

    @property
    def both(self) -> tuple[Side, Side]:
        return self.fitted, self.measured

    def counts(self, loss_images: int) -> dict[str, int]:
        n = len(self.measured.captions)
        counts = {"fit": len(self.fitted.captions), "measured": n, "loss": min(loss_images, n)}
        return {**counts, "tokens": self.measured.places.shape[1]}

    def loss_data(self, device: torch.device, loss_images: int) -> list[Prepared]:
        """The first of the measured images, on ``device``."""
        return [
            Prepared(latents.to(device), {name: value.to(device) for name, value in text.items()})
            for latents, text in between(self.measured.images, 0, loss_images)
        ]


@dataclass(frozen=True)
class Asked:
    """What images a sweep is asked to read; the fields are arguments of :func:`tide.evaluation.sweep`."""

    adapter: Adapter
    source: Source
    fit_source: Source | None
    fit: float
    token_fraction: float | None
    concepts: Sequence[str] | None
    seed: int

    def described(self) -> dict[str, Any]:
        """The pipeline, the data and the concepts, as figures depend on them."""
        sources = [self.source] if self.fit_source is None else [self.source, self.fit_source]
        data = [[each.name, each.fingerprint(), each.n_images] for each in sources]
        concepts = None if self.concepts is None else list(self.concepts)
        return {"pipeline": pipeline_fingerprints(self.adapter.pipe), "data": data, "concepts": concepts}

    def read(self) -> dict[str, str | None]:
        """The images in words."""
        return {
            "read": self.source.described,
            "fit_read": None if self.fit_source is None else self.fit_source.described,
        }

    def sides(self) -> Sides:
        """Reads, encodes and labels all images."""
        images, captions = self._encoded(self.source)
        if self.fit_source is None:
            n_fit, _ = shared(images, self.fit)
            fitted = self._side(between(images, 0, n_fit), captions[:n_fit], self.source)
            measured = self._side(between(images, n_fit, None), captions[n_fit:], self.source, n_fit)
        else:
            fitted = self._side(*self._encoded(self.fit_source), self.fit_source)
            measured = self._side(images, captions, self.source)
        return Sides(fitted, measured, self._labels(fitted, measured))

    def _encoded(self, source: Source) -> tuple[list[Prepared], list[str]]:
        images: list[Prepared] = []
        captions: list[str] = []
        length = caption_length(self.adapter)
        for pixels, texts in source:
            images += prepare(self.adapter, [(pixels, texts)], batch_size=len(pixels), max_sequence_length=length)
            captions += texts
        if not captions:
            raise TideError(f"{source.shown or source.name} holds no images; give data that hold some")
        return images, captions

    def _side(self, images: list[Prepared], captions: list[str], source: Source, first: int = 0) -> Side:
        n_tokens = prod(self._grid)
        least = min(1.0, max(SHARE, LEAST_TOKENS / n_tokens))
        fraction = least if self.token_fraction is None else self.token_fraction
        places = token_places(first + len(captions), n_tokens, fraction, self.seed)[first:]
        return Side(images, captions, places, source, first)

    @property
    def _grid(self) -> tuple[int, ...]:
        return image_grid(self.adapter, self.source.size)

    def _labels(self, fitted: Side, measured: Side) -> Labels | None:
        batches = measured.source.batches
        if isinstance(batches, Masked) and isinstance(fitted.source.batches, Masked):
            masks = (fitted.masks(self._grid), measured.masks(self._grid))
            return label_tokens(masks, (fitted.places, measured.places), batches.level_of, self.concepts)
        if not self.concepts:
            return None
        return label_images((fitted.captions, measured.captions), self.concepts)
