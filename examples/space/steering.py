"""What the page asks of the library: the latents to choose from, a recipe from what was chosen, and its drawing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tide
from tide.adapters.sizes import image_grid, image_size
from tide.browser.jobs import Jobs
from tide.browser.runs import find_runs
from tide.browser.studio import Studio
from tide.checks import GUIDANCE
from tide.editing import recipe_code, token_mask
from tide.editing.change import How
from tide.errors import TideError
from tide.pictures import heat_overlay, resized
from tide.pipeline_names import BUNDLED, recorded_pipeline
from tide.strips import shown

#: Latents that are changed together for a concept, and latents without one that are listed.
OF_CONCEPT, MOST_UNNAMED = 3, 50
#: Strengths of a row.
ROW = (0.5, 1.0, 1.5, 2.0)
#: Pixels of the longer side of a thumbnail, and of anything else at least.
THUMBNAIL, SIDE = 192, 512
#: What the page begins with: the bundled pipeline was trained on short captions and needs little guidance.
BUNDLED_PROMPT, BUNDLED_GUIDANCE = "a plain new red house, facing left, near, on grass, with a shadow", 2.0
#: Seconds of waiting after which a closed page is looked for.
PATIENCE = 1.0

_CONCEPTS = "SELECT latent, concept FROM latents WHERE concept IS NOT NULL ORDER BY auroc DESC, latent"
_UNNAMED = (
    "SELECT latent, monosemanticity FROM latents WHERE concept IS NULL AND images >= ? AND images <= ? "
    "AND monosemanticity IS NOT NULL ORDER BY monosemanticity DESC, latent LIMIT ?"
)


@dataclass(frozen=True)
class Asked:
    """What the widgets of the page say.

    Attributes:
        prompt, seed, n_steps, guidance_scale: as of :class:`tide.Recipe`.
        latents: numbers with commas between them, such as "1120" or "1120, 33".
        how: "scale" or "add".
        strength: the factor; of "add" the amount, where 1 is each latent's strongest value on the index's images.
        steps: the part of the run, as fractions.
        painted: bool ``[H, W]``, where to change the image, its sides multiples of the image's; None or nothing painted
            is everywhere.
    """

    prompt: str
    latents: str
    how: How = "add"
    strength: float = 1.0
    seed: int = 0
    n_steps: int = 20
    guidance_scale: float = GUIDANCE
    steps: tuple[float, float] = (0.0, 1.0)
    painted: np.ndarray | None = None


@dataclass(frozen=True)
class Drawn:
    """What a drawing has come to: pictures, which are previews until they are whole, and how far it is in words."""

    before: Image.Image | None = None
    after: dict[float, Image.Image] = field(default_factory=dict)
    said: str = ""


class Steering:
    """A checkpoint with its index, and its pipeline.

    Args:
        folder: that ``tide train`` wrote, with an index in it.
        pipeline: a diffusers name or folder; default the bundled one.

    Raises:
        TideError: there is no checkpoint or no index, or it is of a pipeline that was not named.
    """

    def __init__(self, folder: str | Path, pipeline: str | None = None) -> None:
        self.run = find_runs([folder])[0]
        self.index = self.run.index
        if self.run.checkpoint is None:
            raise TideError(f"{folder} is an atlas without its checkpoint; give the folder of the checkpoint")
        recorded = recorded_pipeline(self.run.checkpoint)
        if pipeline is None and recorded != BUNDLED:
            raise TideError(f"{folder} is of the pipeline {recorded}, which is not loaded unasked; set TIDE_PIPELINE")
        self.adapter = tide.load_adapter(pipeline or BUNDLED)
        self.size = image_size(self.adapter, None)
        bundled = self.adapter.name == BUNDLED
        self.prompt = BUNDLED_PROMPT if bundled else self.index.image(0)["caption"]
        self.guidance = BUNDLED_GUIDANCE if bundled else GUIDANCE
        self._jobs = Jobs()
        self._studio = Studio(lambda run: self.adapter)
        self._studio.warm(self.run)

    def choices(self) -> list[tuple[str, str]]:
        """What can be chosen, each with its :attr:`Asked.latents`: every concept, the most clearly labelled first, and
        latents without one that fire on images of like captions, neither rarely nor everywhere."""
        of: dict[str, list[int]] = {}
        for row in self.index.query(_CONCEPTS):
            of.setdefault(row["concept"], []).append(row["latent"])
        found = []
        for concept, latents in of.items():
            numbers = ", ".join(map(str, latents[:OF_CONCEPT]))
            found.append((f"{concept} ({'latents' if ',' in numbers else 'latent'} {numbers})", numbers))
        n = self.index.n_images
        for row in self.index.query(_UNNAMED, (max(5, n // 100), n // 2, MOST_UNNAMED)):
            found.append((f"latent {row['latent']}", str(row["latent"])))
        return found

    def latents(self, text: str) -> tuple[int, ...]:
        """The numbers in ``text``. Raises :class:`~tide.errors.TideError` for anything else, and for latents that there
        are not."""
        parts = [part.strip() for part in (text or "").split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise TideError(f"{str(text)[:60]!r} is no latent; choose one of the list, or give numbers such as 3, 14")
        numbers = tuple(map(int, parts))
        for number in numbers:
            self.index.check_latent(number)
        return numbers

    def pictures(self, text: str) -> list[tuple[np.ndarray, str]]:
        """The top images of the latents of ``text``, uint8 ``[h, w, 3]``, grey where they are silent, with captions."""
        found = []
        numbers = self.latents(text)
        for latent in numbers:
            images, maps = (self.index.rows(f"top_{name}")[latent] for name in ("images", "maps"))
            for image, heat in zip(images[: max(2, 8 // len(numbers))], maps, strict=False):
                if image >= 0:
                    picture = _opened(self.index.picture(int(image)))
                    large = resized(np.asarray(picture), shown(picture, THUMBNAIL).size)
                    found.append((heat_overlay(large, heat / 255, 1.0), self.index.image(int(image))["caption"]))
        return found

    def canvas(self) -> tuple[int, int]:
        """Width and height of what a mask is painted on: a multiple of the image's."""
        height, width = self.size
        factor = max(1, SIDE // max(height, width))
        return width * factor, height * factor

    def recipe(self, asked: Asked) -> tide.Recipe:
        """What was asked for, for this autoencoder. Raises :class:`~tide.errors.TideError` for what cannot be drawn."""
        strongest = self.index.columns()["strongest"]
        steps = None if asked.steps == (0.0, 1.0) else asked.steps
        tokens = self._tokens(asked.painted)
        changes = []
        for latent in self.latents(asked.latents):
            unit = float(strongest[latent]) if asked.how == "add" else 1.0
            changes.append(tide.Change((latent,), asked.how, float(f"{asked.strength * unit:.4g}"), steps, tokens))
        return tide.Recipe(
            asked.prompt,
            tuple(changes),
            seed=asked.seed,
            n_steps=asked.n_steps,
            guidance_scale=asked.guidance_scale,
            sae=self.index.facts["sae"],
        )

    def _tokens(self, painted: np.ndarray | None) -> tuple[int, ...] | None:
        if painted is None or not painted.any():
            return None
        tokens = token_mask(torch.from_numpy(painted), image_grid(self.adapter, self.size))
        if not tokens.any():
            raise TideError("the mask covers no place by more than half; paint more, or clear it")
        return tuple(tokens.nonzero().flatten().tolist())

    def written(self, recipe: tide.Recipe) -> tuple[str, str]:
        """The recipe as JSON, and as Python."""
        code = recipe_code(recipe, str(self.run.checkpoint), self.adapter.name or BUNDLED)
        return json.dumps(recipe.to_dict(), indent=2), code

    def draw(self, recipe: tide.Recipe, strengths: Sequence[float] = (1.0,)) -> Iterator[Drawn]:
        """Draws the recipe without its changes and with them at each strength, and tells of every step. Whoever stops
        listening cancels the drawing.

        Raises :class:`~tide.errors.TideError` if it fails.
        """
        job = self._jobs.submit(lambda job: self._studio.draw(self.run, recipe, tuple(strengths), job))
        drawn, told = Drawn(said="waiting"), 0
        try:
            while True:
                new = job.wait(told, PATIENCE)
                told += len(new)
                for event in new:
                    if event["event"] == "failed":
                        raise TideError(event["message"])
                    drawn = _after(drawn, event, tuple(strengths), self.size)
                if new and new[-1]["event"] in ("done", "cancelled"):
                    yield drawn
                    return
                yield drawn
        finally:
            self._jobs.cancel(job)


def _after(drawn: Drawn, event: dict, strengths: tuple[float, ...], size: tuple[int, int]) -> Drawn:
    """What a drawing has come to after another event."""
    kind = event["event"]
    if kind not in ("step", "image"):
        return Drawn(drawn.before, drawn.after, "" if kind == "done" else kind)
    # A preview has a pixel for each latent; smooth is nearer to what it will be than blocks are.
    picture = _opened(base64.b64decode(event["jpeg" if kind == "step" else "png"]))
    if kind == "step":
        picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
    large = shown(picture, SIDE)
    said = "" if kind == "image" else f", step {event['step']} of {event['of']}"
    if event["which"] == "before":
        return Drawn(large, drawn.after, f"without the change{said}")
    strength = strengths[event["number"]]
    return Drawn(drawn.before, {**drawn.after, strength: large}, f"with the change, {strength:g} times{said}")


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
