"""The files of a static export: what the server would answer, at the very paths that the page asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tide.browser import wire
from tide.browser.naming import Naming
from tide.browser.runs import Run
from tide.errors import TideError
from tide.files import finite
from tide.index import Index
from tide.index.layout import SHEET_SIDE

STATIC = Path(__file__).parent / "static"
#: Latents whose cards are in one file: BLOCK of web/src/store.ts.
BLOCK = 64
#: Files of a kind that are made to tell the size of all of them.
SAMPLE = 24
LISTED = "api/runs.json"


@dataclass(frozen=True)
class Files:
    """Files of one kind.

    Attributes:
        path: within the export, with ``{}`` for the number of a file.
        n: how many there are.
        make: the contents of the file of a number.
    """

    path: str
    n: int
    make: Callable[[int], bytes]

    @property
    def about(self) -> int:
        """Bytes of all of them; of many it is estimated from some."""
        some = range(0, self.n, max(1, ceil(self.n / SAMPLE)))
        return round(self.n * sum(len(self.make(i)) for i in some) / max(1, len(some)))


def files_of(runs: Sequence[Run], *, limit: int | None, notes: bool) -> list[Files]:
    """All files of an export; the arguments are those of :func:`~tide.browser.export.export`."""
    found = [*_page(), _one(LISTED, lambda: _json({"static": True, "runs": [_listed(run) for run in runs]}))]
    for run in runs:
        found += _of_run(run, limit, notes)
    return found


def _page() -> list[Files]:
    """The front end, and a file without which GitHub would pass everything through Jekyll."""
    built = sorted(path for path in STATIC.iterdir() if path.is_file()) if STATIC.is_dir() else []
    if not {"index.html", "main.js"} <= {path.name for path in built}:
        raise TideError(f"{STATIC} lacks the page; build it (make web), or install the package again")
    return [_one(path.name, path.read_bytes) for path in built] + [_one(".nojekyll", bytes)]


def _of_run(run: Run, limit: int | None, notes: bool) -> list[Files]:
    index, base = run.index, f"api/runs/{run.id}"
    whole = _most_active(index, limit)
    n, images = index.n_latents, index.n_images

    def cards(block: int) -> bytes:
        return wire.cards(index, range(block * BLOCK, min(n, (block + 1) * BLOCK)))

    return [
        _one(f"{base}/facts.json", lambda: _json(_facts(index))),
        _one(f"{base}/columns.bin", lambda: wire.columns(index)),
        _one(f"{base}/names.json", lambda: _json(_names(run, notes))),
        Files(f"{base}/cards/{{}}.bin", ceil(n / BLOCK), cards),
        # Dead ones, too: the page lists them if asked and leads from each number to the next, and they are small.
        Files(f"{base}/latents/{{}}.json", n, lambda i: _json(_latent(index, i, i in whole))),
        Files(f"{base}/images/{{}}.json", images, lambda i: _json(wire.image(index, i))),
        Files(f"{base}/images/{{}}.bin", images, lambda i: wire.places(index, i)),
        Files(f"{base}/pictures/{{}}.jpg", images, index.picture),
        Files(
            f"{base}/sheets/{{}}.jpg",
            ceil(images * index.n_shown / SHEET_SIDE**2),
            lambda i: index.sheet(i).read_bytes(),
        ),
    ]


def _one(path: str, make: Callable[[], bytes]) -> Files:
    return Files(path, 1, lambda _: make())


def _json(value: Any) -> bytes:
    return json.dumps(finite(value), separators=(",", ":"), allow_nan=False).encode()


def _listed(run: Run) -> dict[str, Any]:
    found = run.described() | {"folder": run.folder.resolve().name, "steers": False}
    found["index"] = {"state": "ready", "stage": "", "done": 0, "total": 0, "message": ""}
    return _told(found, "pipeline")


def _facts(index: Index) -> dict[str, Any]:
    return _told(wire.facts(index), "pipeline", "data")


def _told(said: dict[str, Any], *names: str) -> dict[str, Any]:
    """``said`` with the last parts alone of paths, which tell about this machine and nothing about the latents."""
    return said | {name: without_folders(said[name]) for name in names if isinstance(said.get(name), str)}


def without_folders(text: str) -> str:
    """The last part of a path of some machine; any other text, such as a name on the Hub, as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute() or text.startswith("~"):
            return kind(text).name
    return text


def _most_active(index: Index, limit: int | None) -> frozenset[int]:
    """The ``limit`` latents that fire most; all without a limit."""
    if limit is None or limit >= index.n_latents:
        return frozenset(range(index.n_latents))
    order = (-index.columns()["frequency"]).argsort(kind="stable")
    return frozenset(order[:limit].tolist())


def _latent(index: Index, number: int, whole: bool) -> dict[str, Any]:
    """Everything about a latent; unless it is to be ``whole``, only the top images that its card has."""
    found = wire.latent(index, number)
    return found if whole else found | {"top": found["top"][: wire.ON_CARD], "drawn": []}


def _names(run: Run, notes: bool) -> dict[int, dict[str, Any]]:
    found = {latent: _signed(said) for latent, said in Naming(run).all().items()}
    if notes:
        return found
    bare = {latent: said | {"notes": []} for latent, said in found.items()}
    return {latent: said for latent, said in bare.items() if said["names"] or said["starred"]}


def _signed(said: dict[str, Any]) -> dict[str, Any]:
    """What is said of a latent; a program that gave a name may be called by the folder of its weights."""

    def told(by: str | None) -> str | None:
        if by is None:
            return None
        return f"model:{without_folders(by[6:])}" if by.startswith("model:") else by

    parts = {kind: [each | {"by": told(each["by"])} for each in said[kind]] for kind in ("names", "notes")}
    return said | parts | {"by": told(said["by"])}
