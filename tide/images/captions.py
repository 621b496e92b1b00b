"""The captions of an image folder, by the image's path; what is wrong with them is said in one line each.

For each image, the first of these that there is:

1. an entry of a list (``metadata.jsonl``, ``.csv``, ``.parquet``) in the image's folder, else in the nearest folder
   above it; in one folder in this order of formats;
2. a ``.txt`` file of the image's name beside it (``a.txt`` or ``a.png.txt``);
3. where no image has either and all lie in subfolders: the name of its folder (a class, as DiT takes them), as it is.

An empty caption counts as none. A list's entry names a file as it is on disk, or in another Unicode normalisation or
letter case, or with backslashes, if that fits only one file.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tide.errors import TideError
from tide.files import read_text
from tide.images.files import METADATA, Files, below
from tide.images.metadata import Entry, read_list
from tide.messages import one_line

#: Suffixes of files that may be a list of captions under another name.
_LIKE_LISTS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".caption")
#: Folders of these names hold images of every kind.
_NO_CLASSES = {
    *("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"),
    *("image", "images", "img", "imgs", "data", "picture", "pictures", "photo", "photos"),
}


@dataclass
class Captions:
    """``of``: image -> caption; images without one are not in it. ``added``: images that only a list names, as their
    names have no suffix of a picture. ``notes`` say where captions come from, ``faults`` what was found wrong."""

    of: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)


def captions_of(files: Files, caption_column: str | None = None) -> Captions:
    """Raises :class:`~tide.errors.TideError` for a damaged list, one that names files outside the folder, or a
    caption that is not UTF-8."""
    listed = _Listed(_Index([*files.pictures, *files.others]))
    for name in files.lists:
        listed.read(files, name, caption_column)
    found = Captions(listed.of, sorted(listed.of.keys() & files.others), faults=listed.faults(files))
    found.faults += _add_texts(found.of, files)
    found.of = {name: caption for name, caption in found.of.items() if caption}
    if not found.of:
        found.of, found.notes = _classes([*files.pictures, *found.added])
        found.faults += _misnamed(files)
    return found


def _misnamed(files: Files) -> list[str]:
    """Says which file may list the captions that were not found."""
    like = [name for name in sorted(files.others) if PurePosixPath(name).suffix.lower() in _LIKE_LISTS]
    return [
        f"{files.path(name)} is not read; a list of captions is called {' or '.join(METADATA)}" for name in like[:1]
    ]


def _add_texts(captions: dict[str, str], files: Files) -> list[str]:
    """Adds the texts beside images that have no caption yet; says which texts are beside none, if others are."""
    used = _texts_beside(files)
    for name, text in used.items():
        captions[name] = captions.get(name) or read_text(files.path(text)).strip()
    stray = sorted(files.texts - set(used.values()))
    if not used or not stray:
        return []
    lie = f"{_n(stray, '.txt file')} of {files.root} {'lies' if len(stray) == 1 else 'lie'}"
    return [f"{lie} beside no image of that name, such as {one_line(stray[0])}"]


def _texts_beside(files: Files) -> dict[str, str]:
    """Image -> the text beside it. A text whose name is written in another way than the image's serves only if it is
    no other image's own, and fits no other image's name."""
    texts = {text[: -len(".txt")]: text for text in sorted(files.texts)}
    own: dict[str, str] = {}
    for name in files.pictures:
        exact = next((each for each in _stems(name) if each in texts), None)
        if exact is not None:
            own[name] = exact
    free, alike = _Index(texts.keys() - set(own.values())), dict[str, str]()
    for name in files.pictures:
        found = next(filter(None, map(free.find, _stems(name))), None)
        if name not in own and found is not None:
            alike[name] = found
    fits = Counter({_stems(name)[0]: stem for name, stem in alike.items()}.values())
    own |= {name: stem for name, stem in alike.items() if fits[stem] == 1}
    return {name: texts[stem] for name, stem in own.items()}


def _stems(name: str) -> tuple[str, str]:
    """What the text beside an image may be called, without its suffix."""
    return str(PurePosixPath(name).with_suffix("")), name


@dataclass
class _Listed:
    """The captions of the lists that were read, and what did not fit."""

    index: _Index
    of: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    several: int = 0

    def read(self, files: Files, name: str, caption_column: str | None) -> None:
        """Adds the entries of the list ``name``; an inner list's captions replace those of an outer one. An image that
        the list names exactly is none that it names in another way."""
        here: dict[str, str] = {}
        entries = [(_within(files, name, entry), entry) for entry in read_list(files.path(name), caption_column)]
        exact = self.index.names.intersection(path for path, _ in entries)
        for path, entry in entries:
            self.several += entry.several
            image = self.index.find(path)
            if image is None or (image != path and image in exact):
                self.unmatched.append(f"{one_line(entry.file, 100)} ({entry.where})")
                continue
            if here.get(image) and entry.caption and here[image] != entry.caption:
                self.twice.append(image)
            here[image] = entry.caption or here.get(image, "")
        self.of.update({image: caption for image, caption in here.items() if caption or image not in self.of})

    def faults(self, files: Files) -> list[str]:
        """A sentence for each kind of fault."""
        found = []
        if self.unmatched:
            have = "has" if len(self.unmatched) == 1 else "have"
            found.append(
                f"{_n(self.unmatched, 'caption')} {have} no image in {files.root}, such as that of "
                f"{self.unmatched[0]}; correct the names, or remove them"
            )
        if self.twice:
            are = "is" if len(self.twice) == 1 else "are"
            found.append(
                f"{_n(self.twice, 'image')} of {files.root} {are} listed with several captions, such as "
                f"{one_line(self.twice[0], 100)}: the last one counts"
            )
        if self.several:
            hold = "holds" if self.several == 1 else "hold"
            found.append(f"{self.several:,} of the entries for {files.root} {hold} several captions; the first counts")
        return found


def _n(things: Sized, what: str) -> str:
    return f"{len(things):,} {what}{'s' if len(things) > 1 else ''}"


def _within(files: Files, name: str, entry: Entry) -> str:
    """The path below the folder that an entry of the list ``name`` names. Raises for one outside, which is not even
    looked for."""
    path = below(files.root, os.path.join(PurePosixPath(name).parent, entry.file))
    if path is None:
        shown = one_line(entry.file, 100)
        raise TideError(f"{entry.where} names {shown}, which is not in the folder; correct or remove it")
    return path


class _Index:
    """Finds files by names that may be written in another way."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)
        self.alike: list[dict[str, list[str]]] = [{} for _ in _ALIKE]
        for each, write in zip(self.alike, _ALIKE, strict=True):
            for name in self.names:
                each.setdefault(write(name), []).append(name)

    def find(self, name: str) -> str | None:
        """The file ``name``, else the only one whose name is written alike."""
        for spelled in (name, posixpath.normpath(name.replace("\\", "/"))):
            if spelled in self.names:
                return spelled
            for each, write in zip(self.alike, _ALIKE, strict=True):
                if len(found := each.get(write(spelled), [])) == 1:
                    return found[0]
        return None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


#: Ways to write a name, from the strictest on.
_ALIKE: tuple[Callable[[str], str], ...] = (_composed, lambda name: _composed(name).casefold())


def _classes(images: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The names of the images' folders as captions, if every image lies in a folder that may be a class."""
    of = {name: PurePosixPath(name).parent.name for name in images}
    names = sorted(set(of.values()))
    if not names or "" in names or _NO_CLASSES & {name.lower() for name in names}:
        return {}, ()
    shown = ", ".join(one_line(name, 40) for name in names[:5])
    if len(names) == 1:
        return of, (f"captions are the name of the folder {shown}",)
    return of, (f"captions are the names of {len(names)} folders: {shown}{', ...' if len(names) > 5 else ''}",)
