"""Drawing for the page: loaded pipelines and autoencoders, and recipes drawn with a preview of every step."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image

from tide.adapters import Adapter
from tide.adapters.sizes import image_size
from tide.browser.runs import Run
from tide.browser.steering import FOREIGN
from tide.browser.worker import Teller
from tide.clip import fewer_frames, frames_of, is_clip, write_animated
from tide.editing import Change, Recipe, draw_recipe
from tide.editing.met import Met
from tide.editing.previews import LatentColours
from tide.editing.recipe_drawing import OnMet
from tide.errors import TideError
from tide.fingerprint import fingerprint
from tide.loading import load_sae
from tide.sae import TIDE

#: Unedited images that are kept: a page draws the same one beside many edits.
KEPT = 64


class Studio:
    """Loads and draws. One thread alone uses it, that of the worker's tasks.

    ``load`` gives the adapter of a run's pipeline; it is called once for each pipeline.
    """

    def __init__(self, load: Callable[[Run], Adapter], *, backend: str = "auto") -> None:
        self._load, self._backend = load, backend
        self._adapters: dict[str, Adapter] = {}
        self._models: dict[str, tuple[TIDE, str]] = {}
        self._colours: dict[str, LatentColours] = {}
        self._plain: OrderedDict[Any, Image] = OrderedDict()

    # -- what is loaded --------------------------------------------------------------------------------------

    def adapter(self, run: Run) -> Adapter:
        key = run.pipeline
        if key not in self._adapters:
            self._adapters[key] = self._load(run)
        return self._adapters[key]

    def model(self, run: Run) -> tuple[TIDE, str]:
        """The autoencoder and its fingerprint."""
        if run.checkpoint is None:
            raise TideError(f"the checkpoint of {run.name} is not here; give its folder to tide browse")
        if run.id not in self._models:
            found = load_sae(run.checkpoint, self.adapter(run), backend=self._backend)
            self._models[run.id] = found, fingerprint([found])
        return self._models[run.id]

    def colours(self, run: Run) -> LatentColours:
        """The map from latents to colours for previews, from pictures of the index."""
        key = run.pipeline
        if key not in self._colours:
            self._colours[key] = LatentColours.fit(self.adapter(run), _examples(run, self.adapter(run)))
        return self._colours[key]

    def warm(self, run: Run) -> None:
        """Loads what the first drawing needs."""
        self.model(run)
        self.colours(run)

    # -- drawing -----------------------------------------------------------------------------------------------

    def draw(self, run: Run, recipe: Recipe, strengths: tuple[float, ...], teller: Teller) -> None:
        """Draws a recipe: the unedited image, then the edited one at each strength, telling previews of every step."""
        teller.tell("loading")
        adapter, (model, sae) = self.adapter(run), self.model(run)
        if run.index.facts["sae"] != sae:
            raise TideError(
                f"the index of {run.name} is of other weights than its checkpoint; start tide browse --index"
            )
        if recipe.sae not in (None, sae):
            raise TideError(FOREIGN)
        recipe = replace(recipe, sae=None)  # which is checked; a large one's fingerprint takes seconds each time
        recipe.check(model, adapter)
        colours = self.colours(run)
        previews = self._previewing(teller, colours, adapter, recipe)
        before = self._plain.get(_drawing(run, recipe))
        if before is None:
            unedited = replace(recipe, changes=())
            before = draw_recipe(adapter, model, unedited, before=False, on_step=previews("before"))[1]
            self._keep(_drawing(run, recipe), before)
        teller.tell("image", which="before", **_final(before))
        for i, strength in enumerate(strengths):
            after, remarks = before, list[str]()
            if strength != 0 and recipe.changes:
                edited = replace(recipe, changes=tuple(stronger(each, strength) for each in recipe.changes))
                after = draw_recipe(
                    adapter, model, edited, before=False, on_step=previews("after", i), on_met=_telling(remarks)
                )[1]
            remark = " ".join(remarks) or None
            teller.tell("image", which="after", number=i, strength=strength, remark=remark, **_final(after))

    def _keep(self, key: Any, image: Image) -> None:
        self._plain[key] = image
        while len(self._plain) > KEPT:
            self._plain.popitem(last=False)

    def _previewing(
        self, teller: Teller, colours: LatentColours, adapter: Adapter, recipe: Recipe
    ) -> Callable[..., Callable[[int, int, torch.Tensor], None]]:
        def of(which: str, number: int = 0) -> Callable[[int, int, torch.Tensor], None]:
            def tell(step: int, n_steps: int, clean: torch.Tensor) -> None:
                if step + 1 < n_steps:  # the last is the image itself
                    preview = fewer_frames(colours.image(clean))
                    said = {"jpeg": _jpeg(preview), **_frames(preview)}
                    teller.tell("step", which=which, number=number, step=step + 1, of=n_steps, **said)
                teller.check()

            return tell

        return of


def stronger(change: Change, strength: float) -> Change:
    """A change at a strength: 0 changes nothing, 1 is the change itself."""
    if strength == 1:
        return change
    by = change.by * strength if change.how == "add" else 1 + (change.by - 1) * strength
    return replace(change, by=by)


def _telling(remarks: list[str]) -> OnMet:
    """Adds what is to be said of changes that met nothing, which the page's reader cannot see in the terminal."""

    def met(group: tuple[Change, ...], found: Met) -> None:
        if found.remark is not None:
            latents = ", ".join(dict.fromkeys(str(latent) for change in group for latent in change.latents))
            remarks.append(f"The change of {latents}: {found.remark}.")

    return met


def _drawing(run: Run, recipe: Recipe) -> Any:
    return (
        run.pipeline,
        recipe.prompt,
        recipe.seed,
        recipe.n_steps,
        recipe.guidance_scale,
        recipe.size,
    )


def _examples(run: Run, adapter: Adapter) -> torch.Tensor:
    """Pictures that the map to colours is fitted on, ``[B, 3, H, W]`` in [-1, 1]."""
    import numpy as np

    from tide.index.sheets import parted

    index, (height, width) = run.index, image_size(adapter, None)[-2:]
    pictures = []
    for number in range(0, index.n_images, max(1, index.n_images // 16))[:16]:
        picture = parted(index.picture(number), index.n_shown)[0].resize((width, height))
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1)
    return torch.stack(pictures)


def _final(image: Image) -> dict[str, Any]:
    """An image for the page; of a clip some of its frames side by side, and all of them as a file that moves."""
    if not is_clip(image):
        return {"png": _png(image)}
    buffer = io.BytesIO()
    write_animated(buffer, frames_of(image))
    few = fewer_frames(image)
    return {"png": _png(few), "webp": base64.b64encode(buffer.getvalue()).decode(), **_frames(few)}


def _frames(picture: Image) -> dict[str, int]:
    return {"frames": len(frames_of(picture))} if is_clip(picture) else {}


def _png(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _jpeg(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
