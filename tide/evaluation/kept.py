"""Figures that are kept while others are still to be measured, so that an interrupted measurement can be resumed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from tide.files import read_sealed, write_sealed
from tide.provenance import check_unchanged


class _File(TypedDict):
    config: dict[str, Any]
    figures: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """JSON files in ``folder`` (None keeps nothing), made with ``config``: all that they depend on."""

    folder: Path | None
    config: dict[str, Any]

    def read(self, name: str, **own: Any) -> dict[str, Any] | None:
        """The figures ``name``; None where they are not there. ``own``: what they alone depend on.

        Raises :class:`~tide.errors.TideError` for a file that was made with another configuration, or is damaged.
        """
        if self.folder is None or not (path := self._path(name)).exists():
            return None
        file = read_sealed(path, _File, remedy="delete it to measure it again, or choose another folder")
        now = json.loads(json.dumps({**self.config, **own}))
        remedy = "use the same options, or another folder"
        check_unchanged(file["config"], now, f"{path} was made with other options", remedy=remedy)
        found: dict[str, Any] = file["figures"]
        return found

    def write(self, name: str, figures: dict[str, Any], **own: Any) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sealed(self._path(name), {"config": {**self.config, **own}, "figures": figures})

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.json"
