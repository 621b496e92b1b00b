"""The addresses of the server. Everything that a page shows is also at one of these."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, FiniteFloat
from starlette.exceptions import HTTPException

from tide.browser import wire
from tide.browser.comparing import compared
from tide.browser.guard import Guard
from tide.browser.jobs import Job, Jobs
from tide.browser.naming import Naming
from tide.browser.recipes import Recipes
from tide.browser.runs import Run
from tide.browser.steering import MOST_STRENGTHS, Steering
from tide.errors import TideError
from tide.files import finite
from tide.messages import one_line

STATIC = Path(__file__).parent / "static"
#: Cards that are asked for at a time, at most.
MOST_CARDS = 256
#: What never changes under its address while an index is the same.
_KEEP = {"cache-control": "private, max-age=3600"}
_ASK = {"cache-control": "no-cache"}
_NO_JSON = "what was sent is not JSON; reload the page and try again"
#: Letters of a message at most.
LONGEST = 1000
#: Seconds after which a silent stream of events says that it is alive.
ALIVE = 15.0


class Said(BaseModel):
    """What a person says of a latent."""

    model_config = ConfigDict(extra="forbid", strict=True)
    latent: int
    by: str
    name: str | None = None
    note: str | None = None
    star: bool | None = None


class Drawing(BaseModel):
    """What is to be drawn; ``replace`` cancels the earlier drawings of this ``page`` instead of waiting for them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    run: str
    recipe: dict[str, Any]
    strengths: list[FiniteFloat] = [1.0]
    replace: bool = True
    page: str = ""


def make_app(
    runs: Sequence[Run],
    jobs: Jobs,
    steering: Steering | None,
    *,
    hosts: frozenset[str] = frozenset(),
    token: str | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> Any:
    """The ASGI application. ``steering`` None browses without steering."""
    by_id = {run.id: run for run in runs}
    names = {run.id: Naming(run) for run in runs}
    recipes = {run.id: Recipes(run) for run in runs}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        on_start()
        yield
        jobs.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(TideError)
    def refused(_: Request, error: TideError) -> Response:
        return _refusal(400, error)

    @app.exception_handler(OSError)
    def lost(_: Request, error: OSError) -> Response:
        return _refusal(400, f"a file cannot be read or written ({error.strerror or error}); reload the page")

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> Response:
        if any(each["type"] == "json_invalid" for each in error.errors()):
            return _refusal(400, _NO_JSON)
        return _refusal(422, "; ".join(f"{_place(each['loc'])}: {each['msg']}" for each in error.errors()))

    @app.exception_handler(HTTPException)
    def absent(_: Request, error: HTTPException) -> Response:
        known = {400: _NO_JSON, 404: "there is nothing at this address; open the first page again"}
        return _refusal(error.status_code, known.get(error.status_code, error.detail))

    def run_of(run: str) -> Run:
        if run not in by_id:
            raise TideError(f"there is no run {run[:60]!r}; choose one of the list")
        return by_id[run]

    @app.get("/api/runs.json")
    def list_runs() -> Any:
        found = [run.described() for run in runs]
        for each in found:
            each["steers"] = bool(each["steers"] and steering is not None)
        return JSONResponse({"static": False, "runs": finite(found)}, headers=_ASK)

    @app.get("/api/runs/{run}/facts.json")
    def facts(run: str) -> Any:
        return JSONResponse(finite(wire.facts(run_of(run).index)), headers=_ASK)

    @app.get("/api/runs/{run}/columns.bin")
    def columns(run: str) -> Any:
        return _bytes(wire.columns(run_of(run).index))

    @app.get("/api/runs/{run}/cards.bin")
    def cards(run: str, latents: str) -> Any:
        return _bytes(wire.cards(run_of(run).index, _numbers(latents, MOST_CARDS)))

    @app.get("/api/runs/{run}/latents/{latent}.json")
    def latent(run: str, latent: int) -> Any:
        return JSONResponse(wire.latent(run_of(run).index, latent), headers=_ASK)

    @app.get("/api/runs/{run}/images/{image}.json")
    def image(run: str, image: int) -> Any:
        return JSONResponse(wire.image(run_of(run).index, image), headers=_ASK)

    @app.get("/api/runs/{run}/images/{image}.bin")
    def places(run: str, image: int) -> Any:
        return _bytes(wire.places(run_of(run).index, image))

    @app.get("/api/runs/{run}/pictures/{image}.jpg")
    def picture(run: str, image: int) -> Any:
        return Response(run_of(run).index.picture(image), media_type="image/jpeg", headers=_KEEP)

    @app.get("/api/runs/{run}/sheets/{sheet}.jpg")
    def sheet(run: str, sheet: int) -> Any:
        return FileResponse(run_of(run).index.sheet(sheet), media_type="image/jpeg", headers=_KEEP)

    @app.get("/api/runs/{run}/search")
    def search(run: str, text: str) -> Any:
        found = run_of(run).index.search(text[:500])
        named = names[run].search(text[:500])
        return {"latents": list(dict.fromkeys([*named, *found["latents"]])), "images": found["images"]}

    @app.get("/api/runs/{run}/names.json")
    def read_names(run: str) -> Any:
        return JSONResponse(names[run_of(run).id].all(), headers=_ASK)

    @app.post("/api/runs/{run}/names")
    def add_name(run: str, said: Said) -> Any:
        return names[run_of(run).id].add(said.latent, said.by, name=said.name, note=said.note, star=said.star)

    @app.get("/api/compare.bin")
    def compare(a: str, b: str) -> Any:
        return _bytes(wire.packed(compared(run_of(a).index, run_of(b).index)))

    @app.get("/api/runs/{run}/recipes")
    def list_recipes(run: str) -> Any:
        return JSONResponse(recipes[run_of(run).id].all(), headers=_ASK)

    @app.post("/api/runs/{run}/recipes/{name}")
    def save_recipe(run: str, name: str, recipe: dict[str, Any]) -> Any:
        found = asked().recipe(run_of(run), recipe)
        return recipes[run].save(name, found)

    @app.post("/api/runs/{run}/code")
    def code(run: str, recipe: dict[str, Any]) -> Any:
        return recipes[run_of(run).id].code(asked().recipe(run_of(run), recipe))

    def asked() -> Steering:
        if steering is None:
            raise TideError("this server browses only; start tide browse without --no-steering")
        return steering

    @app.post("/api/drawings")
    def draw(drawing: Drawing) -> Any:
        run, at = run_of(drawing.run), asked()
        recipe = at.recipe(run, drawing.recipe)
        if not 1 <= len(drawing.strengths) <= MOST_STRENGTHS:
            raise TideError(f"give 1 to {MOST_STRENGTHS} strengths")
        strengths = tuple(drawing.strengths)
        job = jobs.submit(
            lambda job: at.draw(run, recipe, strengths, job),
            owner=drawing.page or None,
            replace=drawing.replace,
        )
        return {"job": job.id, "before": jobs.place(job)}

    @app.get("/api/jobs/{job}/events")
    async def events(job: str) -> Any:
        return StreamingResponse(
            _events(_job(job), jobs.cancel), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    @app.post("/api/jobs/{job}/cancel")
    def cancel(job: str) -> Any:
        jobs.cancel(_job(job))
        return {"cancelled": True}

    def _job(job: str) -> Job:
        found = jobs.get(job)
        if found is None:
            raise TideError("that drawing is forgotten; draw it again")
        return found

    @app.get("/")
    def page() -> Any:
        return FileResponse(STATIC / "index.html", headers=_ASK)

    app.mount("/", StaticFiles(directory=STATIC), name="static")
    return Guard(app, hosts, token)


def _bytes(data: bytes) -> Response:
    return Response(data, media_type="application/octet-stream", headers=_ASK)


def _numbers(text: str, most: int) -> list[int]:
    parts = text.split(",")
    if len(parts) > most or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise TideError(f"give at most {most} numbers, such as 3,14")
    return list(map(int, parts))


def _refusal(status: int, message: object) -> Response:
    # In one printable line: what was sent may hold halves of characters, which no answer can.
    return JSONResponse({"message": one_line(message, LONGEST)}, status)


def _place(where: Sequence[Any]) -> str:
    """Where in a request something is wrong; the first part says whether that is its path, its query or its body."""
    return ".".join(map(str, where[1:])) or "the request"


async def _events(job: Job, leave: Callable[[Job], None]) -> AsyncIterator[bytes]:
    # Without a thread for each page that listens: a few would take all there are, and the others hear late.
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            loop.call_soon_threadsafe(changed.set)

    try:
        async for each in _told(job, tell, changed):
            yield each
    finally:
        # The page was closed: nobody sees what is drawn, and nobody can cancel it.
        if not job.ended and not job.heard:
            leave(job)


async def _told(job: Job, tell: Callable[[], None], changed: asyncio.Event) -> AsyncIterator[bytes]:
    told = 0
    with job.listened(tell):
        while True:
            changed.clear()
            ended, new = job.ended, job.events[told:]
            told += len(new)
            yield b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in new) or b": alive\n\n"
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), ALIVE)
