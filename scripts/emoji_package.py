"""The package ``emoji-datasource-google`` of npm: its list of pictures, and how its files are read."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

from tide.errors import TideError
from tide.files import parse_json
from tide.messages import one_line

LIST = "emoji.json"
PICTURES = "img/google/64"
#: The remedy of every message.
FETCH = "fetch it with `npm pack emoji-datasource-google@16.0.0`"


class Variant(TypedDict):
    """A skin tone of an entry of ``emoji.json``."""

    image: str
    has_img_google: bool


class Emoji(Variant):
    """An entry of ``emoji.json``, as far as it is read; ``skin_variations`` may be missing."""

    name: str
    short_name: str
    category: str
    subcategory: str
    skin_variations: NotRequired[dict[str, Variant]]


def opened(package: Path) -> Callable[[str], bytes]:
    """A reader of the package's files by their names in it.

    Raises :class:`~tide.errors.TideError` if there is no package or no archive; the reader raises it for a file that
    the package lacks.
    """
    if not package.exists():
        raise TideError(f"{package} does not exist; {FETCH}")
    files = {} if package.is_dir() else _unpacked(package)

    def read(name: str) -> bytes:
        if name in files:
            return files[name]
        if not package.is_dir() or not (package / name).is_file():
            raise TideError(f"{package} has no {name}; {FETCH}")
        return (package / name).read_bytes()

    return read


def _unpacked(package: Path) -> dict[str, bytes]:
    """The list and the pictures of an archive, read once from start to end: going back means unpacking it again."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(package) as archive:
            for member in archive:
                name = member.name.removeprefix("package/")
                if name == LIST or name.startswith(PICTURES):
                    found = archive.extractfile(member)
                    files[name] = found.read() if found else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise TideError(f"{package} is not a whole archive ({one_line(error)}); {FETCH}") from None
    return files


def listed(read: Callable[[str], bytes]) -> list[Emoji]:
    """The entries of the list. Raises :class:`~tide.errors.TideError` for one that is damaged."""
    entries: list[Emoji] = parse_json(read(LIST).decode(errors="replace"), LIST, list[Emoji])
    return entries
