"""Unpacks named pictures for ``train_pictures.py``: ``python scripts/emoji_pictures.py OUT --package FILE_OR_FOLDER``.

The package is ``emoji-datasource-google`` of npm (its pictures are of the Noto project, Apache-2.0), as ``npm pack``
fetches it or ``npm install`` unpacks it. ``OUT/train`` and ``OUT/held-out`` become image folders: pictures of
64 x 64 pixels on white, and a ``metadata.jsonl`` with these columns.

``text``         the caption: what is seen, and the skin tone if one was chosen
``texts``        other captions of the same picture, with its group, or of the group alone
``grouped``      the caption with the group: for concepts that are groups, with ``--caption-column grouped``
``category``, ``subcategory``, ``skin_tone``
``weight``       how often training draws the picture, relative to others
``flip``         whether its mirror image fits the caption as well
``held_out``     in ``held-out`` alone: "combination" if training has all words of the caption, else "word"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

from emoji_names import plain, shown_name
from emoji_package import FETCH, LIST, PICTURES, Emoji, listed, opened
from mistakes import told

from tide.errors import TideError
from tide.files import replace_file
from tide.images import open_picture

TONES = {
    "1F3FB": "light",
    "1F3FC": "medium light",
    "1F3FD": "medium",
    "1F3FE": "medium dark",
    "1F3FF": "dark",
}
#: One picture in this many is never trained on, and neither is one base emoji in this many, in any skin tone.
HELD_OUT = 25
#: Held out as well: words that other pictures teach, in combinations that none shows.
COMBINATIONS = ("blue heart", "purple square", "green circle", "woman astronaut", "man artist", "tiger face")
#: Signs, of which there are many, teach little about what things look like; most flags differ by details alone.
_SIGNS = 0.4
_FLAGS = 0.15
#: Parts of the pictures with writing, hands of clocks, or meaning in their direction.
_ONE_WAY = ("Symbols", "Flags")
_ONE_WAY_WORDS = re.compile(r"\b(left|right|leftwards|rightwards|clock|watch|book|calendar|keyboard|banknote|chart)\b")


@dataclass(frozen=True)
class Row:
    """A line of ``metadata.jsonl``."""

    file_name: str
    text: str
    texts: tuple[str, ...]
    grouped: str
    category: str
    subcategory: str
    skin_tone: str
    weight: float
    flip: bool
    held_out: str = ""


def rows_of(emoji: list[Emoji]) -> Iterator[tuple[str, Row]]:
    """(base name, row) for each picture that the package lists."""
    names = [shown_name(each["name"], each["short_name"]) for each in emoji]
    mirrored = {name.removesuffix(" facing right") for name in names if name.endswith(" facing right")}
    for name, each in zip(names, emoji, strict=True):
        flip = each["category"] not in _ONE_WAY and name not in mirrored and not _ONE_WAY_WORDS.search(name)
        weight = _weight(name, each["category"], each["subcategory"])
        if each["has_img_google"]:
            yield name, _row(each, each["image"], name, "", weight, flip)
        # A base emoji's skin tones count together as much as it does: half of the files are such variants.
        variants = {k: v for k, v in each.get("skin_variations", {}).items() if v["has_img_google"]}
        for codes, variant in variants.items():
            tone = " and ".join(_tone(code) for code in dict.fromkeys(codes.split("-")))
            yield name, _row(each, variant["image"], name, tone, weight / len(variants), flip)


def _tone(code: str) -> str:
    if code not in TONES:
        raise TideError(f"{LIST}: {code[:40]!r} is no skin tone; {FETCH}")
    return TONES[code]


def _weight(name: str, category: str, subcategory: str) -> float:
    if category == "Flags" and subcategory != "flag":
        return _FLAGS
    sign = category in ("Symbols", "Component") and subcategory not in ("geometric", "gender")
    return _SIGNS if sign or name.startswith(("clock face", "family")) or name.endswith("facing right") else 1.0


def _row(each: Emoji, image: str, name: str, tone: str, weight: float, flip: bool) -> Row:
    if Path(image).name != image:
        raise TideError(f"{LIST}: {image[:80]!r} is no file name; {FETCH}")
    skin = f", {tone} skin tone" if tone else ""
    category, group = plain(each["category"]), plain(each["subcategory"])
    texts = [f"{name}, {group}{skin}", f"{group}{skin}", f"{category}{skin}"]
    short = plain(each["short_name"])
    if len(short) > 2 and not short.isdigit() and short != name:
        texts.append(short + skin)
    return Row(image, name + skin, tuple(texts), texts[0], category, group, tone, weight, flip)


def split(rows: list[tuple[str, Row]]) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows that are held out, by hashes of names alone: the same in every run."""
    train: list[Row] = []
    held_out: list[Row] = []
    for name, row in rows:
        out = name in COMBINATIONS or _chosen(name) or (row.skin_tone and _chosen(row.file_name))
        (held_out if out else train).append(row)
    known = {word for row in train for text in (row.text, *row.texts) for word in text.split()}
    kinds = ("word", "combination")
    return train, [replace(row, held_out=kinds[known.issuperset(row.text.split())]) for row in held_out]


def _chosen(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % HELD_OUT == 0


def write(folder: Path, rows: list[Row], others: list[Row], read: Callable[[str], bytes]) -> None:
    """The pictures on white, and their list, which is written last. Pictures of ``others``, which an earlier run may
    have split in another way, are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in others:
        (folder / row.file_name).unlink(missing_ok=True)
    for row in rows:
        file = BytesIO()
        open_picture(read(f"{PICTURES}/{row.file_name}"), row.file_name).save(file, "PNG")
        (folder / row.file_name).write_bytes(file.getvalue())
    lines = "".join(json.dumps({k: v for k, v in asdict(row).items() if v != ""}) + "\n" for row in rows)
    replace_file(folder / "metadata.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--package", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    args = parser.parse_args()
    with told():
        unpack(args.package, args.out)


def unpack(package: Path, out: Path) -> None:
    """Writes both folders. Raises :class:`~tide.errors.TideError` for a package that is damaged or another."""
    read = opened(package)
    train, held_out = split(list(rows_of(listed(read))))
    for name, rows, others in (("train", train, held_out), ("held-out", held_out, train)):
        write(out / name, rows, others, read)
        counts = Counter(row.held_out for row in rows if row.held_out)
        kinds = "".join(f", {n} by {kind}" for kind, n in sorted(counts.items()))
        print(f"{out / name}: {len(rows)} pictures{kinds}")


if __name__ == "__main__":
    main()
