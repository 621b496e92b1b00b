"""What the worker can do: load, draw, and make an index."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, Protocol

from tide.activations.source import Source
from tide.adapters import Adapter
from tide.adapters.sizes import image_grid
from tide.browser.runs import Run
from tide.browser.studio import Studio
from tide.browser.worker import Teller
from tide.index import build_index, sizes_in_words
from tide.interpretation.gathered import map_size

#: Steps of the sampling run at whose timesteps an index is read.
TIMESTEPS = 10


class Opening(Protocol):
    """How pipelines and images are opened; it is pickled for the worker's process."""

    def adapter(self, run: Run) -> Adapter:
        """The pipeline that a run is of."""

    def source(self, run: Run, adapter: Adapter) -> Source | None:
        """The images that its index is made on; None where that is not known."""


class StudioTasks:
    """Tasks of a :class:`~tide.browser.worker.Worker`."""

    def __init__(self, opening: Opening, backend: str = "auto") -> None:
        self.opening = opening
        self.studio = Studio(opening.adapter, backend=backend)
        self._runs: dict[tuple[Any, ...], Run] = {}

    def handle(self, what: str, arguments: dict[str, Any], teller: Teller) -> Any:
        """``warm``, ``draw`` or ``index``; of the last, why there are no images to make it on, or None."""
        run = self._run(arguments["run"])
        if what == "draw":
            self.studio.draw(run, arguments["recipe"], arguments["strengths"], teller)
        elif what == "warm":
            self.studio.warm(run)
        else:
            assert what == "index"
            return self._index(run, teller)
        return None

    def _run(self, place: tuple[str, str, Path, Path | None]) -> Run:
        if place not in self._runs:
            self._runs[place] = Run(*place)
        return self._runs[place]

    def _index(self, run: Run, teller: Teller) -> str | None:
        adapter = self.studio.adapter(run)
        source = self.opening.source(run, adapter)
        if source is None:
            return f"what images {run.name} is to be read on is not known; give --data"
        model, _ = self.studio.model(run)
        cells = prod(map_size(image_grid(adapter, source.size)))
        l0 = float(model.config.k or 64)
        sizes = model.n_latents, source.n_images, TIMESTEPS, cells, l0
        teller.pause(message=sizes_in_words(*sizes, size=source.size))

        def progress(stage: str, done: int, total: int) -> None:
            teller.pause(stage=stage, done=done, total=total)

        build_index(adapter, model, source, run.folder, on_progress=progress)
        return None
