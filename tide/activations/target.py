"""Where a store is written: into its folder, or through a local one to a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tide.activations.manifest import Manifest, Shard, recorded_beside, sample_range, samples_of, verify_shard
from tide.errors import TideError
from tide.files import Write, file_digest, lock_folder, new_folders, replace_files
from tide.files.cache import staging_folder
from tide.files.lock import LOCK
from tide.files.remote import Place, RemotePath
from tide.images.identity import Sample


def target_of(folder: Place) -> Target:
    """The target for a store's folder or URL."""
    return RemoteTarget(folder) if isinstance(folder, RemotePath) else Target(folder)


class Target:
    """A folder. ``local`` is where files are written first, on this machine."""

    folder: Place

    def __init__(self, folder: Path) -> None:
        self.folder = self.local = folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder and holds it for this writer alone."""
        with new_folders(self.local), lock_folder(self.local):
            yield

    def holds(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.local / name).exists()

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of every shard that is there, listed or not."""
        return {file.name: file.stat().st_size for file in self.local.glob("shard-*.safetensors")}

    def verified(self, manifest: Manifest, shard: Shard) -> list[Sample] | None:
        """Checks a shard and completes the entry of an earlier version; returns what it records of its samples.

        Raises :class:`~tide.errors.TideError` if it is damaged.
        """
        path = self.local / shard["file"]
        file = verify_shard(path, manifest, shard)
        if "sha256" not in shard:
            shard["sha256"] = file_digest(path)
        shard.update({**sample_range(file.get_tensor("sample")), **shard})  # type: ignore[typeddict-item]
        return samples_of(file)

    def recorded(self, shard: Shard) -> list[Sample] | None:
        """The samples of a damaged shard, or None."""
        return recorded_beside(self.folder, shard)

    def put(self, files: dict[str, Write]) -> tuple[int, str]:
        """Writes files in their order; returns the size and the SHA-256 of the last."""
        paths = {self.local / name: write for name, write in files.items()}
        replace_files(paths)
        last = list(paths)[-1]
        return last.stat().st_size, file_digest(last)

    def remove(self, name: str) -> None:
        """Removes a file that only takes space, if it can."""
        with suppress(OSError):
            (self.local / name).unlink(missing_ok=True)

    def needed(self, n_bytes: int, shard_bytes: int) -> int:
        """Bytes of this machine's disk that ``n_bytes`` of activations in shards of ``shard_bytes`` take."""
        return n_bytes


class RemoteTarget(Target):
    """A URL. Each file is written and checked in a local folder, uploaded, and removed once all of it arrived.

    The lock is this machine's: nothing keeps another machine from writing to the same URL. A shard that was uploaded is
    not read again to resume: its size and the list of its samples are compared.
    """

    folder: RemotePath

    def __init__(self, folder: RemotePath) -> None:
        super().__init__(staging_folder(folder))
        self.folder = folder
        self._sizes: dict[str, int] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        with super().held():
            self._clear()  # what a killed process had not uploaded yet
            names = self.folder.listing().items()
            self._sizes = {name: size for name, size in names if size is not None and name.startswith("shard-")}
            try:
                yield
            finally:
                self._clear()
        with suppress(OSError):
            self.local.rmdir()

    def _clear(self) -> None:
        for file in self.local.iterdir():
            if file.name != LOCK:
                file.unlink()

    def holds(self, name: str) -> bool:
        return name in self.folder.listing()

    def sizes(self) -> dict[str, int]:
        return dict(self._sizes)

    def verified(self, manifest: Manifest, shard: Shard) -> list[Sample] | None:
        size = self._sizes.get(shard["file"])
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, not {shard['bytes']}"
            raise TideError(f"{self.folder / shard['file']} {found}; it is collected again")
        if "sha256" not in shard or "samples" not in shard:
            raise TideError(f"{self.folder} was written by an earlier version; resume a local copy of it")
        return self.recorded(shard)

    def put(self, files: dict[str, Write]) -> tuple[int, str]:
        about = super().put(files)
        for name in files:
            (self.folder / name).upload(self.local / name)
            (self.local / name).unlink()
            if name.startswith("shard-"):
                self._sizes[name] = about[0]
        return about

    def remove(self, name: str) -> None:
        self._sizes.pop(name, None)
        with suppress(TideError):
            (self.folder / name).remove()

    def needed(self, n_bytes: int, shard_bytes: int) -> int:
        return min(n_bytes, shard_bytes)
