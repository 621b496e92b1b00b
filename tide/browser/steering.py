"""Drawings and indexes that the server asks its worker for, in the order of the queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, Protocol

from tide.browser.jobs import Cancelled, Job, Jobs, reason
from tide.browser.runs import Run, State
from tide.editing.progress import check_steps
from tide.editing.recipe import FORMAT, Recipe
from tide.errors import TideError
from tide.index import index_of
from tide.index.layout import FACTS

FOREIGN = "the recipe is of another autoencoder than this run's; open the run that it was made with"
#: Strengths in a row at most.
MOST_STRENGTHS = 9


class Caller(Protocol):
    """As :meth:`tide.browser.worker.Worker.call`."""

    def call(self, job: Job, what: str, on_pause: Callable[[dict[str, Any]], None] = ..., **arguments: Any) -> Any: ...


class Steering:
    """What pages can ask for. The worker loads pipelines; here are only recipes and the queue."""

    def __init__(self, jobs: Jobs, worker: Caller) -> None:
        self.jobs, self._worker = jobs, worker

    def recipe(self, run: Run, data: Any) -> Recipe:
        """A recipe as the page sends it, for this run. Raises :class:`~tide.errors.TideError` for anything else, as far
        as that is clear without the pipeline: drawing checks the rest."""
        if not isinstance(data, dict):
            raise TideError("a recipe is missing; send one")
        try:
            found = Recipe.from_dict({**data, "format": FORMAT})
        except RecursionError:
            raise TideError("the recipe is nested too deeply; make it again") from None
        index = run.index
        if found.sae is not None and found.sae != index.facts["sae"]:
            raise TideError(FOREIGN)
        for change in found.changes:
            for latent in (*change.latents, *(change.where.latents if change.where else ())):
                index.check_latent(latent)
            check_steps(change.steps, found.n_steps)
            if found.size is None:
                change.mask(prod(index.facts["grid"]))
        return replace(found, sae=index.facts["sae"])

    def draw(self, run: Run, recipe: Recipe, strengths: tuple[float, ...], job: Job) -> None:
        """Has a recipe drawn, as :meth:`tide.browser.studio.Studio.draw` does it; called by the job."""
        self._worker.call(job, "draw", run=run.place, recipe=recipe, strengths=strengths)

    def warm(self, run: Run) -> Job:
        """Has loaded what the first drawing needs."""
        return self.jobs.submit(lambda job: self._worker.call(job, "warm", run=run.place))

    def make_index(self, run: Run, say: Callable[[str], None]) -> Job:
        """Puts the making of a run's index into the queue. Drawings are done in between; the run says how far it is."""
        run.state, run.message = "waiting", ""
        return self.jobs.submit(lambda job: self._make_index(run, job, say), long=True)

    def _make_index(self, run: Run, job: Job, say: Callable[[str], None]) -> None:
        def paused(said: dict[str, Any]) -> None:
            run.state = "building"
            if "message" in said:
                run.message = said["message"]
                say(f"{run.message}.")
            else:
                run.stage, run.done, run.total = said["stage"], said["done"], said["total"]
            self.jobs.others()

        try:
            missing = self._worker.call(job, "index", paused, run=run.place)
        except Cancelled:
            self._not_made(run, "it was interrupted; start tide browse again to resume it")
            raise
        except BaseException as error:  # whatever a pipeline raises, the page and the terminal say it
            why = reason(error)
            self._not_made(run, why)
            say(f"The index of {run.name} was not made: {why}")
            raise
        if missing:
            self._not_made(run, missing, "missing")
            say(f"{run.name} has no index: {missing}")
        else:
            run.state, run.message = "ready", ""
            say(f"The index of {run.name} is made")

    @staticmethod
    def _not_made(run: Run, why: str, state: State = "failed") -> None:
        """An older index that is still whole is shown, with the reason above it."""
        whole = (index_of(run.folder) / FACTS).exists()
        run.state, run.message = ("ready", f"The index was not made again: {why}") if whole else (state, why)
