"""The shards of a store that is read: files in its folder, or copies of files at a URL."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tide.activations.manifest import Manifest, Shard, open_shard, recorded_beside, samples_of, verify_shard
from tide.errors import TideError, TideWarning
from tide.files import file_digest
from tide.files.cache import cache_limit, fetched
from tide.files.remote import Place, RemotePath
from tide.images.identity import Sample

#: Small files at a URL that are read at a time.
_READERS = 16
#: Shards that are fetched at a time.
_DOWNLOADS = 8
#: How often a copy that cannot be used is fetched.
_ATTEMPTS = 3
_SHA256 = re.compile("[0-9a-f]{64}")


def shards_of(folder: Place, manifest: Manifest) -> Shards:
    """The shards that the manifest of ``folder`` lists; raises :class:`~tide.errors.TideError` as far as faults show
    without reading them."""
    return RemoteShards(folder, manifest) if isinstance(folder, RemotePath) else LocalShards(folder, manifest)


class Shards(ABC):
    """Shards by their places in the manifest. Faults raise :class:`~tide.errors.TideError`."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def open(self, index: int) -> Any:
        """The memory-mapped file."""

    def prepare(self, indices: Set[int]) -> None:  # noqa: B027
        """Has those shards at hand that are going to be opened, where opening one takes long."""

    @abstractmethod
    def verify(self, index: int) -> None:
        """Reads all of it and checks every value."""

    @abstractmethod
    def digest(self, index: int) -> str:
        """Its SHA-256."""

    @abstractmethod
    def samples(self) -> list[list[Sample] | None]:
        """What each records of its samples."""


class LocalShards(Shards):
    """Files in a folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.paths = [folder / shard["file"] for shard in manifest["shards"]]
        for index in range(len(self.paths)):
            self.open(index)

    def open(self, index: int) -> Any:
        return open_shard(self.paths[index], self.manifest, self.manifest["shards"][index])

    def verify(self, index: int) -> None:
        verify_shard(self.paths[index], self.manifest, self.manifest["shards"][index])

    def digest(self, index: int) -> str:
        return self.manifest["shards"][index].get("sha256") or file_digest(self.paths[index])

    def samples(self) -> list[list[Sample] | None]:
        return [samples_of(self.open(index)) for index in range(len(self.paths))]


class RemoteShards(Shards):
    """Files at a URL. Each is fetched whole when it is first used (:func:`tide.files.cache.fetched`), and every value
    of it is checked then, once in a process."""

    def __init__(self, folder: RemotePath, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.folder = folder
        self._checked: set[int] = set()
        # It becomes the name of a file.
        if not all(_SHA256.fullmatch(shard.get("sha256", "")) for shard in manifest["shards"]):
            raise TideError(f"{folder} does not list the SHA-256 of every shard; copy the store and read the copy")
        needed, limit = sum(shard["bytes"] for shard in manifest["shards"]), cache_limit()
        if needed > limit:
            said = (
                f"{folder} takes {needed:,} bytes and its copies may take {limit:,}, so shards are fetched repeatedly"
            )
            warnings.warn(f"{said}; raise TIDE_CACHE_SIZE", TideWarning, stacklevel=4)

    def open(self, index: int) -> Any:
        shard, checks = self.manifest["shards"][index], open_shard if index in self._checked else verify_shard
        for attempt in range(_ATTEMPTS):
            copy = self._copy(shard)
            try:
                file = checks(copy, self.manifest, shard)
            except (TideError, FileNotFoundError):
                # This disk has damaged it, or another process has just removed it for want of room.
                if attempt == _ATTEMPTS - 1:
                    raise
                copy.unlink(missing_ok=True)
                continue
            self._checked.add(index)
            return file

    def _copy(self, shard: Shard) -> Path:
        return fetched(self.folder / shard["file"], shard["bytes"], shard["sha256"])

    def prepare(self, indices: Set[int]) -> None:
        """Fetches several at a time, unless they would push one another out of the cache."""
        shards = [self.manifest["shards"][index] for index in sorted(indices)]
        if len(shards) > 1 and sum(shard["bytes"] for shard in shards) <= cache_limit():
            with ThreadPoolExecutor(_DOWNLOADS) as downloads:
                list(downloads.map(self._copy, shards))

    def verify(self, index: int) -> None:
        self._checked.discard(index)
        self.open(index)

    def digest(self, index: int) -> str:
        return self.manifest["shards"][index]["sha256"]

    def samples(self) -> list[list[Sample] | None]:
        """Those in the small files beside the shards."""
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(lambda shard: recorded_beside(self.folder, shard), self.manifest["shards"]))
