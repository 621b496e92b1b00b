"""``run.json``: what a run's folder holds, and what made it. Every command that makes a folder writes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NotRequired, TypedDict

from tide.files import parse_json
from tide.files.remote import Place, place_of, text_at, write_json_at
from tide.provenance import provenance

FILE = "run.json"

Kind = Literal[
    "plan", "activations", "autoencoder", "evaluation", "sweep", "concepts", "atlas", "trajectory", "effect", "bank",
    "edit", "score", "guard", "conversion", "study",
]  # fmt: skip
FileKind = Literal[
    "activations", "autoencoder", "chart", "curves", "data", "figures", "index", "labels", "model", "page", "picture",
    "report", "table", "weights",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a folder holds.

    Attributes:
        kind: the command that made it, in a word.
        blocks: numbers of the transformer's blocks that it covers.
        family: of the transformer, as the adapter names it.
        pipeline: its name or folder.
        weights: component of the pipeline -> fingerprint (:func:`tide.fingerprint.pipeline_fingerprints`).
        autoencoder: ``folder``, ``weights`` (their fingerprint) and ``config`` of the checkpoint that was used.
        data: ``name``, ``images`` and whatever else tells them apart.
        configuration: of a training or a study; options of a command stand under ``arguments``.
        measured: the headline figures; one that is not finite is None once written.
        files: name of a file or folder beside ``run.json`` -> what it is.
    """

    kind: Kind
    blocks: list[int] = field(default_factory=list)
    family: str | None = None
    pipeline: str | None = None
    weights: dict[str, str] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileKind] = field(default_factory=dict)


class Run(TypedDict):
    """``run.json``. Older ones have no ``holds``."""

    command: NotRequired[str | None]
    arguments: NotRequired[dict[str, Any]]
    seed: NotRequired[int | None]
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[dict[str, Any]]
    holds: NotRequired[Contents]
    earlier: NotRequired[list[dict[str, Any]]]


def read_run(folder: str | Place) -> Run | None:
    """The folder's ``run.json``, or None where there is none. Raises :class:`~tide.errors.TideError` for a damaged
    one."""
    path = place_of(folder) / FILE
    text = text_at(path)
    return None if text is None else parse_json(text, str(path), Run)


def contents(folder: str | Place) -> Contents | None:
    """What a folder holds, or None where nothing says so. Raises :class:`~tide.errors.TideError` for a damaged
    ``run.json``."""
    run: Any = read_run(folder)
    if run is None or "holds" not in run:
        return None
    return Contents(**{each.name: run["holds"][each.name] for each in fields(Contents) if each.name in run["holds"]})


def write_run(folder: str | Place, holds: Contents, made_by: Mapping[str, Any] | None = None) -> None:
    """Writes ``run.json``; the entries of earlier runs into this folder are kept under ``earlier``, the oldest first.

    ``made_by``: what :func:`tide.provenance.provenance` says; default that of a caller from Python.
    """
    before: dict[str, Any] = dict(read_run(folder) or {})
    earlier = [*before.pop("earlier", []), before] if before else []
    now = {**(made_by or provenance()), "holds": {k: v for k, v in asdict(holds).items() if v not in (None, [], {})}}
    write_json_at(place_of(folder) / FILE, {**now, **({"earlier": earlier} if earlier else {})})


def record_measured(folder: str | Place, measured: Mapping[str, Any]) -> None:
    """Adds the headline figures to the last run of ``run.json`` once they are known."""
    _change_holds(folder, lambda holds: {"measured": dict(measured)})


def record_files(folder: str | Place, files: Mapping[str, FileKind]) -> None:
    """Adds files that were made later to those of the last run of ``run.json``."""
    _change_holds(folder, lambda holds: {"files": {**holds.get("files", {}), **files}})


def _change_holds(folder: str | Place, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    run: Any = read_run(folder)
    if run is not None and "holds" in run:
        write_json_at(place_of(folder) / FILE, {**run, "holds": {**run["holds"], **change(run["holds"])}})
