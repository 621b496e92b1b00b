"""The judge as a scorer of sets of images."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tide.evaluation.scorers.base import AttributeReader, check_images, provenance
from tide.fingerprint import fingerprint
from tide.scenes.judge import Judge, Verdict, load_judge


class JudgeScorer(AttributeReader):
    """Embeds images of rendered scenes and reads their attributes, for :func:`tide.evaluation.scorers.score_sets`.

    ``judge``: default the trained one of the package. It is moved to ``device``.
    """

    def __init__(self, judge: Judge | None = None, *, device: str | torch.device = "cpu") -> None:
        self.judge = (load_judge() if judge is None else judge).to(device)

    def embed_images(self, images: Tensor) -> Tensor:
        """``[B, 3, 64, 64]`` in [-1, 1] to ``[B, e]`` on the judge's device, not normalised."""
        return self.judge.embed_images(check_images(images))

    def read(self, images: Tensor) -> list[Verdict]:
        """A verdict on each of ``[B, 3, 64, 64]`` in [-1, 1]."""
        return self.judge.read(check_images(images))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """As :class:`~tide.evaluation.scorers.Scorer` says; the hash is the weights' fingerprint."""
        return provenance(self, type(self.judge).__name__, None, fingerprint([self.judge]))
