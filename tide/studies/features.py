"""What features of tokens tell about the concepts of rendered scenes: the best single one, and probes on a few.

Features are chosen, and probes fitted, on training scenes; both are scored on scenes of development and of the test.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tide.evaluation.probing import choose_features, fit_probes
from tide.interpretation.concepts import Annotated, find_concepts
from tide.interpretation.timesteps import concept_timesteps
from tide.sae.model import TIDE
from tide.sae.position import Position, at_step
from tide.scenes.annotate import annotated_scenes
from tide.scenes.scene import CONCEPTS, LEVEL_OF, Scene, Split, scenes
from tide.studies.bench import Bench
from tide.studies.kept import kept

#: Numbers of features of a probe.
PROBED = (1, 2, 5, 10)
#: Splits on which features are scored.
SCORED: tuple[Split, ...] = ("dev", "test")
#: Added to a bench's seed, they give the seeds of the scenes.
SEEDS: dict[Split, int] = {"train": 9000, "dev": 9001, "test": 9002}
#: Test scenes whose numbers of active latents are kept for a picture.
PICTURED = 6


@dataclass(frozen=True)
class FeatureSizes:
    """Scenes of each split, and timesteps over which features are averaged."""

    images: int = 240
    timesteps: int = 5


@dataclass
class Features:
    """The annotated scenes of a bench, on the pipeline's device; with the bench's ``folder`` other processes read what
    the first has collected."""

    bench: Bench
    sizes: FeatureSizes = FeatureSizes()

    def scenes(self, split: Split) -> list[Scene]:
        return list(scenes(split, self.sizes.images, self.bench.seed + SEEDS[split]))

    @cached_property
    def annotated(self) -> dict[Split, Annotated]:
        return {split: self._annotated(split) for split in SEEDS}

    @cached_property
    def concepts(self) -> list[str]:
        """Those that some tokens of the training and of the test scenes show, and some do not. Scenes of development,
        of fewer combinations, may lack one."""
        masks = [self.annotated[split].masks for split in ("train", "test")]
        return [c for c in LEVEL_OF if all(bool(m[c].any()) and not bool(m[c].all()) for m in masks)]

    def _annotated(self, split: Split) -> Annotated:
        bench, device = self.bench, self.bench.adapter.device
        if bench.folder is None:
            found = self._collected(split)
        else:
            config = {**bench.config(), **asdict(self.sizes)}
            found = kept(bench.folder / f"scenes-{split}.safetensors", config, lambda: self._collected(split))
        masks = dict(zip(LEVEL_OF, found["masks"].to(device), strict=True))
        return Annotated(found["timesteps"].to(device), found["x"].to(device), masks)

    def _collected(self, split: Split) -> dict[str, Tensor]:
        bench = self.bench
        at, seed = concept_timesteps(bench.adapter, self.sizes.timesteps), bench.seed + SEEDS[split]
        data = annotated_scenes(bench.adapter, self.scenes(split), [bench.block], at, seed=seed)[bench.block]
        return {"timesteps": data.timesteps, "x": data.x, "masks": torch.stack([data.masks[c] for c in LEVEL_OF])}

    # -- what is measured ---------------------------------------------------------------------------------

    def figures(self, features: dict[Split, Tensor], *, signed: bool) -> dict[str, Any]:
        """Concept -> ``auroc`` and ``iou`` of the single feature that fits best, on test scenes, and under ``probes``
        the AUROC of a probe on m features: m -> split -> AUROC.

        ``features`` hold ``[images * tokens, n_features]`` for each split; ``signed`` features have two directions.
        """
        masks = {split: data.flat_masks(self.concepts) for split, data in self.annotated.items()}
        first = features["train"], masks["train"]
        single = find_concepts(self.concepts, first, (features["test"], masks["test"]), signed=signed)
        found: dict[str, Any] = {
            c: {"auroc": _rounded(each.auroc), "iou": _rounded(each.iou), "probes": {}} for c, each in single.items()
        }
        chosen = choose_features(*first, min(max(PROBED), features["train"].shape[1]))
        for m in PROBED:
            probes = fit_probes(*first, chosen[:, :m])
            areas = {split: probes.auroc(features[split], masks[split]).tolist() for split in SCORED}
            for i, concept in enumerate(self.concepts):
                found[concept]["probes"][str(m)] = {split: _rounded(area[i]) for split, area in areas.items()}
        return found

    def of_model(self, model: TIDE) -> dict[str, Any]:
        """``concepts``: the :meth:`figures` of a model's latents; ``places``: where it spends them (:meth:`places`)."""
        found = {split: latents_and_counts(model, data) for split, data in self.annotated.items()}
        latents = {split: each[0] for split, each in found.items()}
        return {"concepts": self.figures(latents, signed=False), "places": self.places(found["test"][1])}

    def of_projection(self, components: Tensor | None = None) -> dict[str, Any]:
        """The same of raw neurons, or of their projections on ``components [n, d_model]``; these have no places."""
        raw = {split: data.x.mean(0).flatten(0, 1) for split, data in self.annotated.items()}
        if components is not None:
            raw = {split: x @ components.to(x).T for split, x in raw.items()}
        return {"concepts": self.figures(raw, signed=True)}

    def places(self, counts: Tensor) -> dict[str, Any]:
        """Active latents by ``region``, and in each token of the first :data:`PICTURED` ``images``, from ``counts
        [images * tokens]`` of the test scenes."""
        data = self.annotated["test"]
        objects = data.flat_masks(list(CONCEPTS["class"])).any(1)
        shadow = data.masks["shadow"].flatten() & ~objects
        ground = data.flat_masks(list(CONCEPTS["ground"])).any(1) & ~objects & ~shadow
        regions = {"object": objects, "shadow": shadow, "ground": ground, "sky": ~(objects | shadow | ground)}
        images = counts.view(-1, data.n_tokens)[:PICTURED]
        return {
            "region": {name: float(counts[mask].mean()) for name, mask in regions.items() if bool(mask.any())},
            "images": [[round(value, 2) for value in image] for image in images.tolist()],
        }


def latents_and_counts(model: TIDE, data: Annotated) -> tuple[Tensor, Tensor]:
    """Latents ``[images * tokens, n_latents]`` averaged over the timesteps, as
    :func:`~tide.interpretation.concepts.mean_latents` has them, and in the mean over the timesteps how many of them
    are active, ``[images * tokens]``."""
    n = len(data.timesteps)
    total, count = torch.zeros(()), torch.zeros(())
    for i, (t, x) in enumerate(zip(data.timesteps.tolist(), data.x, strict=True)):
        z = model.dense(x.flatten(0, 1), Position(t, at_step(data.conditioning, i)))
        total, count = z + total.to(z.device), (z != 0).sum(1) + count.to(z.device)
    return total / n, count / n


def _rounded(value: float) -> float | None:
    """None where it is not known."""
    return None if math.isnan(value) else round(value, 6)
