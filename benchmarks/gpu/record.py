"""The record of a check: ``{"calls": [...], "stages": {...}}``, saved after every unit of work.

A call is one run of the command: its date, commit, device and versions. A stage consists of units, such as one for each
shape; each unit names its call, so that a record of several calls says where and from which commit a figure comes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import report
from benchmarks.table import replace, write

Record = dict[str, Any]

NO_TIME = "no time was left"


class RecordError(ValueError):
    """A file is missing or is not a record; the message is one line."""


def empty() -> Record:
    return {"calls": [], "stages": {}}


def load(path: Path) -> Record:
    """A record, or an empty one if there is no file. Raises `RecordError` for a file that is not a record."""
    if not path.exists():
        return empty()
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        record: Record = json.loads(path.read_text())
        report(record)
    except Exception as error:  # a damaged record may fail in many ways
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecordError(
            f"{path} is not a record of gpu-check ({reason}); move it away or give another folder"
        ) from error
    return record


def load_all(paths: Sequence[Path]) -> tuple[Record, list[str]]:
    """`merge` of several files. Raises `RecordError` for one that is missing or not a record."""
    if missing := [str(path) for path in paths if not path.exists()]:
        raise RecordError(f"{missing[0]} does not exist: give records of earlier calls")
    return merge([load(path) for path in paths])


def save(path: Path, record: Record) -> None:
    """Replaces the record and its page, ``.json`` and ``.md``."""
    write(path, record)
    replace(path.with_suffix(".md"), report(record))


def stage(record: Record, name: str) -> dict[str, Any]:
    """A stage's entry, made if it is new."""
    found: dict[str, Any] = record["stages"].setdefault(name, {"units": {}, "finished": False})
    return found


def finished(record: Record, name: str) -> bool:
    """Whether a stage ran to its end and none of its units failed."""
    entry = record["stages"].get(name, {})
    return bool(entry.get("finished")) and not failures(entry)


def failures(entry: dict[str, Any]) -> list[str]:
    """The units of a stage that failed."""
    return [title for title, unit in entry["units"].items() if "error" in unit]


def without_other_devices(record: Record, device: str) -> tuple[Record, list[str]]:
    """The record without the units of other devices, and these devices: their figures may not stand beside new ones."""
    calls = record["calls"]
    others = {i for i, call in enumerate(calls) if call.get("device", "CPU") != device}
    kept: Record = {"calls": calls, "stages": {}}
    for name, entry in record["stages"].items():
        units = {title: unit for title, unit in entry["units"].items() if unit["call"] not in others}
        if units or entry.get("call") not in others:
            kept["stages"][name] = entry | {"units": units, "finished": entry["finished"] and units == entry["units"]}
    return kept, sorted({calls[i].get("device", "CPU") for i in others})


def merge(records: Sequence[Record]) -> tuple[Record, list[str]]:
    """One record of several, and the units that were in more than one of them.

    Of a unit that several records have, the last one without an error counts, or else the last.
    """
    whole, repeated = empty(), []
    for record in records:
        first = len(whole["calls"])
        whole["calls"] += record["calls"]
        for name, entry in record["stages"].items():
            into = stage(whole, name)
            for title, unit in entry["units"].items():
                if title in into["units"]:
                    repeated.append(f"{name}: {title}")
                    if "error" in unit and "error" not in into["units"][title]:
                        continue
                into["units"][title] = unit | {"call": unit["call"] + first}
            _settle(into, entry, first)
    return whole, repeated


def _settle(into: dict[str, Any], entry: dict[str, Any], first: int) -> None:
    """Whether the merged stage is finished, and else why not."""
    into["finished"] = into["finished"] or entry["finished"]
    into["seconds"] = into.get("seconds", 0.0) + entry.get("seconds", 0.0)
    if into["finished"]:
        into.pop("error", None)
    elif "error" in entry:
        into["error"] = entry["error"]
    if "call" in entry:
        into["call"] = entry["call"] + first
