"""Small pictures of one colour, in files or in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

RED = (255, 0, 0)


def picture(i: int = 0, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """The i-th of many pictures of one colour each."""
    return Image.new("RGB", size, (i % 256, i // 256, 100))


def save(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "PNG")


def make(folder: Path, *names: str) -> Path:
    """A folder of pictures of these names, each of another colour."""
    for i, name in enumerate(names):
        save(folder / name, (i % 256, i // 256, 100), (8, 8))
    return folder


def list_captions(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes ``metadata.jsonl`` into the folder ``path``."""
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (path / "metadata.jsonl").write_text(text, encoding="utf-8")
