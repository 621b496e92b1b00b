"""The runs that a browser shows: checkpoints and atlases found in folders, each with its index."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tide.errors import TideError
from tide.files.per_block import found_blocks
from tide.index import Index, index_of
from tide.index.layout import FACTS
from tide.interpretation.names import NAMES, Names
from tide.runs import contents
from tide.sae.checkpoint import CONFIG, WEIGHTS, load_config

#: Seconds by which weights must be younger than their index to be taken for others: copies are made in any order.
LATER = 60.0
State = Literal["ready", "missing", "waiting", "building", "failed"]


@dataclass
class Run:
    """One autoencoder that is shown.

    Attributes:
        id: its part of an address.
        name: what it is called on the page.
        folder: where its index and its names are.
        checkpoint: its weights; None for an atlas whose checkpoint is elsewhere or gone.
        state: of the index; ``done`` of ``total`` and ``message`` say more.
    """

    id: str
    name: str
    folder: Path
    checkpoint: Path | None
    state: State = "missing"
    stage: str = ""
    done: int = 0
    total: int = 0
    message: str = ""
    _index: Index | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if (index_of(self.folder) / FACTS).exists():
            self.state = "ready"

    @property
    def index(self) -> Index:
        """The index, opened at first use, and again once it was made anew. Raises
        :class:`~tide.errors.TideError` where there is none or it is damaged."""
        with self._lock:
            stamp = _stamp(index_of(self.folder) / FACTS)
            if stamp is None and self.folder.exists():
                self._index = None
                raise TideError(f"{self.folder} has no index yet; wait for it, or make one: tide atlas --index")
            if stamp is None:
                self._index = None
                raise TideError(f"{self.folder} was deleted or moved; start tide browse again")
            if self._index is None or self._opened != stamp:
                self._index, self._opened = Index(self.folder), stamp
            return self._index

    _opened: tuple[int, int] | None = None

    @property
    def place(self) -> tuple[str, str, Path, Path | None]:
        """What :class:`Run` is made of again in another process."""
        return self.id, self.name, self.folder, self.checkpoint

    @property
    def names(self) -> Names:
        return Names(self.folder / NAMES, self.index.n_latents)

    def described(self) -> dict[str, Any]:
        """What the page needs to list it. Of one whose files are gone or damaged, why: the others are listed still."""
        found: dict[str, Any] = {"id": self.id, "name": self.name, "folder": str(self.folder), "steers": False}
        state, message = self.state, self.message
        if state == "missing" and (index_of(self.folder) / FACTS).exists():  # made meanwhile by another command
            state, message = "ready", ""
        try:
            found |= self._about(state)
            if state == "ready":
                _ = self.index  # which may be gone, or damaged
                message = message or self._doubt()
        except TideError as error:
            state, message = "failed", str(error)
        found["index"] = {
            "state": state,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "message": message,
        }
        return found

    def _doubt(self) -> str:
        """What is to be said of an index that is older than its weights."""
        weights, facts = None if self.checkpoint is None else self.checkpoint / WEIGHTS, index_of(self.folder) / FACTS
        if weights is None or not weights.exists() or weights.stat().st_mtime < facts.stat().st_mtime + LATER:
            return ""
        return (
            "The checkpoint was written after its index. If it was trained further, its latents are others: make the "
            f"index again, tide browse {self.folder} --index"
        )

    @property
    def pipeline(self) -> str:
        """The pipeline that it was trained on, as its checkpoint or its index names it. Raises
        :class:`~tide.errors.TideError` where neither can be read."""
        return str(self._about("ready")["pipeline"])

    def _about(self, state: State) -> dict[str, Any]:
        """What the checkpoint says of it or, without one, an index that is ready."""
        found: dict[str, Any] = {}
        if self.checkpoint is not None:
            config = load_config(self.checkpoint)
            found |= {"block": config.block, "nLatents": config.n_latents, "kind": _kind(config.modulation is not None)}
            found |= {"pipeline": config.pipeline, "steers": config.target is None and not config.undo}
        elif state == "ready":
            facts = self.index.facts
            found |= {"block": facts["block"], "nLatents": facts["n_latents"], "pipeline": facts["pipeline"]}
            found["kind"] = _kind(facts["sae_config"].get("modulation") is not None)
        return found


def _kind(modulated: bool) -> str:
    return "TIDE" if modulated else "SAE"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def find_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in folders: a checkpoint, a set of them, an atlas with an index, or a folder with any of these.

    Raises :class:`~tide.errors.TideError` for a folder that is missing or holds none, and without any folder.
    """
    if not paths:
        raise TideError("no folder is named; give that of a checkpoint, or one with several, such as runs/demo")
    runs: dict[Path, Run] = {}
    for given in paths:
        root = Path(given)
        shown = root.resolve().name  # of "." and "..", too
        if not root.is_dir():
            raise TideError(f"{root} is not a folder; give the folder of a checkpoint, or one with several")
        found = _within(root)
        if not found:
            raise TideError(
                f"{root} holds no checkpoint and no index; give the folder that tide train or tide demo wrote"
            )
        for folder, checkpoint in found:
            name = shown if folder == root else str(folder.relative_to(root))
            if folder.resolve() not in runs:
                label = name if len(paths) == 1 or folder == root else f"{shown}/{name}"
                runs[folder.resolve()] = Run(_id(label, runs.values()), label, folder, checkpoint)
    return list(runs.values())


def _within(root: Path) -> list[tuple[Path, Path | None]]:
    """Folders to show and their checkpoints; of a folder of folders those a level or two below."""
    if (root / CONFIG).is_file():
        return [(root, root)]
    if blocks := found_blocks(root):
        return [(each, each) for each in blocks.values() if (each / CONFIG).is_file()]
    if (index_of(root) / FACTS).is_file():
        return [(root, _recorded_checkpoint(root))]
    found: list[tuple[Path, Path | None]] = []
    for each in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (each / CONFIG).is_file():
            found.append((each, each))
        elif blocks := found_blocks(each):
            found += [(block, block) for block in blocks.values() if (block / CONFIG).is_file()]
        elif (index_of(each) / FACTS).is_file():
            found.append((each, _recorded_checkpoint(each)))
    # What was made to be looked at first comes first: TIDE before the plain SAE beside it.
    return sorted(found, key=lambda pair: _is_plain(pair[1]))


def _is_plain(checkpoint: Path | None) -> bool:
    try:
        return checkpoint is None or json.loads((checkpoint / CONFIG).read_text(encoding="utf-8"))["modulation"] is None
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _recorded_checkpoint(folder: Path) -> Path | None:
    holds = contents(folder)
    recorded = None if holds is None else holds.autoencoder.get("folder")
    path = Path(recorded) if isinstance(recorded, str) else None
    return path if path is not None and (path / CONFIG).is_file() else None


def _id(label: str, others: Any) -> str:
    base = "".join(c if c.isalnum() and c.isascii() else "-" for c in label).strip("-").lower() or "run"
    taken = {run.id for run in others}
    return next(name for i in range(1, 10**6) if (name := base if i == 1 else f"{base}-{i}") not in taken)
