"""Reference images for an edit: training scenes that show the target and stand where the source's object stands.

A linear probe reads that place off the block's own activations of the unedited image. It is fitted on rendered training
scenes, whose layout is known. The target's own image is never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from tide.adapters import Adapter, Call, tap
from tide.scenes.annotate import GUIDANCE_SCALE, N_SAMPLING_STEPS, annotated_scenes
from tide.scenes.render import render
from tide.scenes.scene import ATTRIBUTES, Scene, scenes
from tide.studies.tasks import DRAW_BATCH, EditTask, draw

#: Seeds of the scenes among which a reference is looked for, all of one combination of attributes.
CANDIDATE_SEEDS = range(10_000, 10_120)

#: Attributes in which a reference may differ from the edited scene where no training scene shows all of them.
YIELDING = ("shadow", "ground", "colour", "class")

#: Attributes that do not affect the layout, each at one value, so that a layout is computed once.
_STILL = {"colour": "red", "shadow": "without", "ground": "grass", "style": "plain", "age": "new"}


def layout_of(scene: Scene) -> tuple[float, float, float]:
    """The object's centre, lower edge and height in pixels."""
    return _layout(replace(scene, **_STILL))  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def _layout(scene: Scene) -> tuple[float, float, float]:
    rows, columns = render(scene).masks[scene.depth].nonzero()
    return float(columns.mean()), float(rows.max()), float(rows.max() - rows.min() + 1)


def layout_timesteps(adapter: Adapter) -> Tensor:
    """Steps in the middle of the run, where the layout is settled and noise still hides the details."""
    grid = adapter.sampling_timesteps(N_SAMPLING_STEPS)
    return grid[len(grid) // 2 : 4 * len(grid) // 5]


@dataclass(frozen=True)
class LayoutProbe:
    """Ridge regression from a block's activations, averaged over :func:`layout_timesteps`, to :func:`layout_of`."""

    block: int
    weight: Tensor  # [tokens * d_model, 3]
    mean: Tensor
    offset: Tensor

    @classmethod
    def fit(
        cls, adapter: Adapter, block: int, *, n_images: int = 512, ridge: float = 1e-2, seed: int = 0
    ) -> LayoutProbe:
        items = list(scenes("train", n_images, seed))
        x = annotated_scenes(adapter, items, [block], layout_timesteps(adapter), seed=seed)[block].x.mean(0).flatten(1)
        y = torch.tensor([layout_of(scene) for scene in items])
        mean, offset = x.mean(0), y.mean(0)
        gram = (x - mean) @ (x - mean).T  # fewer images than features: the dual form
        penalty = ridge * gram.diagonal().mean() * torch.eye(len(x))
        return cls(block, (x - mean).T @ torch.linalg.solve(gram + penalty, y - offset), mean, offset)

    def draw(self, adapter: Adapter, tasks: Sequence[EditTask]) -> tuple[Tensor, Tensor]:
        """The unedited images of ``tasks``, and their layouts ``[tasks, 3]``, read off the block during the drawing."""
        wanted = {round(t) for t in layout_timesteps(adapter).tolist()}
        images, layouts = [], []
        for start in range(0, len(tasks), DRAW_BATCH):
            seen: list[Tensor] = []

            def keep(x: Tensor, call: Call, *, at: list[Tensor] = seen) -> None:
                if round(float(call.timestep[0])) in wanted:
                    rows = adapter.conditional_rows(len(x), GUIDANCE_SCALE > 1)
                    at.append(x[rows].flatten(1).float())

            with tap(adapter, {self.block: keep}):
                images.append(draw(adapter, tasks[start : start + DRAW_BATCH]))
            layouts.append((torch.stack(seen).mean(0).cpu() - self.mean) @ self.weight + self.offset)
        return torch.cat(images), torch.cat(layouts)


def reference_scenes(task: EditTask, layout: Tensor, n: int) -> list[Scene]:
    """The ``n`` training scenes that show the target where the source's object stands, the nearest first.

    All other attributes are those of the edited scene, except where its combination with the target is held out for
    development or test: then one of :data:`YIELDING` differs. For an edit of depth only the horizontal place counts,
    since near and far objects stand at different heights.
    """
    wanted = task.scene.changed(task.attribute, task.target)
    others = [name for name in YIELDING if name != task.attribute]
    near_misses = [wanted.changed(name, v) for name in others for v in ATTRIBUTES[name] if v != wanted[name]]
    scene = next(s for s in (wanted, *near_misses) if s.split == "train")
    candidates = [replace(scene, seed=seed) for seed in CANDIDATE_SEEDS]
    layouts = torch.tensor([layout_of(candidate) for candidate in candidates])
    away = (layouts - layout).square()
    distance = away[:, 0] if task.attribute == "depth" else away.sum(1)
    return [candidates[i] for i in distance.argsort(stable=True)[:n].tolist()]


def nearest_references(tasks: Sequence[EditTask], layouts: Tensor) -> dict[EditTask, Scene]:
    """The nearest reference scene of each task, from the layouts ``[tasks, 3]`` of the unedited images."""
    return {task: reference_scenes(task, at, 1)[0] for task, at in zip(tasks, layouts, strict=True)}
