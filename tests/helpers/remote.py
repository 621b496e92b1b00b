"""A file system in memory, at ``troubled://``, whose next operations fail as they are told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tide.files import remote

#: Where the tests' store is.
URL = "troubled://bucket/acts"


class Troubled(MemoryFileSystem):
    """``errors`` are raised one after another, each by one operation; ``calls`` names every operation."""

    protocol = "troubled"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    errors: ClassVar[list[Exception]] = []
    calls: ClassVar[list[str]] = []
    #: Which operations fail.
    when: ClassVar[Callable[[str], bool]] = lambda call: True
    #: Bytes of a download that arrive while it is not None.
    arrives: ClassVar[list[int]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("troubled://", "memory://"))

    @classmethod
    def reset(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.errors.clear()
        cls.calls.clear()
        cls.arrives.clear()
        cls.when = lambda call: True

    def _trouble(self, call: str) -> None:
        self.calls.append(call)
        if self.errors and type(self).when(call):
            raise self.errors.pop(0)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self._trouble(f"read {path}")
        return super().cat_file(path, *args, **kwargs)

    def get_file(self, path: str, to: str, *args: Any, **kwargs: Any) -> None:
        self._trouble(f"get {path}")
        super().get_file(path, to, *args, **kwargs)
        if self.arrives:
            Path(to).write_bytes(Path(to).read_bytes()[: self.arrives.pop(0)])

    def put_file(self, file: str, path: str, *args: Any, **kwargs: Any) -> None:
        self._trouble(f"put {path}")
        super().put_file(file, path, *args, **kwargs)

    def ls(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._trouble(f"list {path}")
        return super().ls(path, *args, **kwargs)


def fetched_shards() -> list[str]:
    """The shards that were fetched, in order."""
    return [call.rpartition("/")[2] for call in Troubled.calls if call.startswith("get ") and "shard" in call]


def start(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Empties the file system and has nobody wait; copies go into a folder ``cache``, which is returned."""
    Troubled.reset()
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("TIDE_CACHE", str(folder / "cache"))
    return folder / "cache"


fsspec.register_implementation("troubled", Troubled, clobber=True)
