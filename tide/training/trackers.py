"""The trackers of one training beside TensorBoard: W&B, trackio, and whatever else accelerate knows."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

from tide.errors import TideError
from tide.files import read_json, write_json
from tide.hub.paths import without_paths
from tide.messages import one_line
from tide.sae.model import TIDE
from tide.training.config import TrainConfig
from tide.training.latent_pictures import Gallery, strip
from tide.training.tracker_kinds import RunName, as_one_process, begin, show, shows_pictures

#: In the folder of a training: the runs of its trackers, which a resumed training continues.
FILE = "trackers.json"
#: Pictures of latents are logged so many times in a training, unless it is said otherwise.
TIMES = 10


class _Run(TypedDict):
    """A tracker's run, and the last steps whose figures and whose picture it was told."""

    id: str
    logged: int
    drawn: int


@dataclass(frozen=True)
class Tracking:
    """What logs a training beside TensorBoard. It changes no number of the training.

    Attributes:
        names: "wandb", "trackio", or another tracker that accelerate knows
            (:func:`accelerate.tracking.register_tracker_class`).
        pictures_every: steps between two pictures of the latents that are most active, where the data know pictures
            (a live training's do); None: a tenth of the training, 0: none.

    Raises:
        TideError: ``pictures_every`` is negative.
    """

    names: tuple[str, ...] = ()
    pictures_every: int | None = None

    def __post_init__(self) -> None:
        if self.pictures_every is not None and self.pictures_every < 0:
            raise TideError(f"pictures_every = {self.pictures_every} must be at least 0; 0 is for no pictures")

    def every(self, steps: int) -> int:
        """Steps between two pictures in a training of so many ``steps``; 0 for none."""
        return max(1, steps // TIMES) if self.pictures_every is None else self.pictures_every


class Trackers:
    """The runs of one block's training in all its trackers. ``folder`` is the training's; ``gallery`` what pictures of
    latents are drawn over, if there is such a thing.

    A tracker that fails once it has started gives one warning, and the training goes on without it.
    """

    def __init__(
        self, tracking: Tracking, folder: Path, title: str, group: str | None, gallery: Callable[[], Gallery] | None
    ) -> None:
        self.tracking, self.folder, self.title, self.group = tracking, folder, title, group
        self._gallery_of = gallery if tracking.pictures_every != 0 else None
        self._gallery: Gallery | None = None
        self._running: dict[str, Any] = {}
        self._runs: dict[str, _Run] = {}

    def start(self, config: Mapping[str, Any], *, resume: bool) -> None:
        """Begins the runs, or with ``resume`` continues those of the folder. ``config`` is logged. The gallery is made
        now, before anything else reads the images.

        Raises :class:`~tide.errors.TideError` if a tracker does not start.
        """
        before: dict[str, _Run] = {}
        if resume and (self.folder / FILE).is_file():
            before = read_json(self.folder / FILE, dict[str, _Run])
        for name in self.tracking.names:
            run = before.get(name) or _Run(id=_new_id(self.title), logged=0, drawn=0)
            named = RunName(run["id"], self.title, self.group)
            self._running[name] = begin(name, named, self.folder, config, again=name in before)
            self._runs[name] = run
        # Those that are not used this time can be continued another time.
        self._runs = {**before, **self._runs}
        if self._gallery_of is not None and any(shows_pictures(*each) for each in self._running.items()):
            self._gallery = self._gallery_of()

    def record(self) -> None:
        """Writes which runs there are into the folder."""
        write_json(self.folder / FILE, self._runs)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Logs the figures of a step, unless a run has them from before an interruption."""
        for name in self._behind("logged", step):
            self._tell(name, lambda tracker: tracker.log(dict(values), step=step))
            self._runs[name]["logged"] = step
        self.record()

    def after(self, model: TIDE, step: int, steps: int) -> None:
        """Logs a picture of the latents after this step, where it is time to: at the end, too."""
        every = self.tracking.every(steps)
        if self._gallery is None or not every or (step % every and step != steps):
            return
        if names := [name for name in self._behind("drawn", step) if shows_pictures(name, self._running[name])]:
            picture = strip(model, self._gallery, f"step {step}")
            for name in names:
                self._tell(name, partial(show, name, key="latents", picture=picture, step=step))
                self._runs[name]["drawn"] = step
            self.record()

    def close(self) -> None:
        """Ends the runs."""
        for name in list(self._running):
            self._tell(name, lambda tracker: tracker.finish())
        self._running.clear()

    def _behind(self, of: Literal["logged", "drawn"], step: int) -> list[str]:
        """The trackers that were not yet told of this step."""
        return [name for name in self._running if self._runs[name][of] < step]

    def _tell(self, name: str, what: Callable[[Any], None]) -> None:
        """Calls a tracker, which is given up if it fails."""
        try:
            with as_one_process():
                what(self._running[name])
        except Exception as error:  # code of others, which fails in ways of its own; the training is not to end by it
            del self._running[name]
            warnings.warn(
                f"the tracker {name} ends here ({one_line(error, 160)}); the training continues, and training.json and "
                "tensorboard/ hold its figures, too",
                stacklevel=3,
            )


def logged_configuration(config: TrainConfig, model: TIDE, data: Mapping[str, Any]) -> dict[str, Any]:
    """What trackers show of a training: the configuration by its full names, what it trains, and on which data. It may
    be sent elsewhere, and has no absolute paths."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        within = value.items() if isinstance(value, dict) else ()
        found |= {f"{name}.{each}": of for each, of in within} or {name: value}
    of = model.config
    found |= {"n_latents": of.n_latents, "k": of.k, "d_model": of.d_model, "data": data.get("name")}
    found |= {name: getattr(of, name) for name in ("family", "pipeline", "block", "tensor", "target")}
    return {name: without_paths(value) for name, value in found.items()}


def _new_id(title: str) -> str:
    """An id that no other run has, of letters, digits and hyphens, as W&B wants them."""
    plain = "".join(each if each.isascii() and each.isalnum() else "-" for each in title)[:64]
    return f"{plain}-{uuid.uuid4().hex[:8]}"
