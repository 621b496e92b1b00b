"""What kind of data a path or a name names, told without reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tide.images.files import SUFFIXES

#: "folder": of image files. "saved": a data set saved by ``datasets``, or Parquet files. "named": a name for
#: ``datasets``.
Kind = Literal["folder", "saved", "named"]

#: Files that ``datasets.save_to_disk`` writes for a Dataset and for a DatasetDict.
STATE, DICT = "state.json", "dataset_dict.json"
PARQUET = (".parquet",)


def kind_of(spec: str | Path) -> Kind:
    path = Path(spec)
    if path.is_dir():
        return "saved" if is_saved(path) or parquet_files(path) else "folder"
    if path.suffix.lower() in PARQUET:
        return "saved"
    # What can only be a path counts as one, which gives the clearer message.
    is_path = isinstance(spec, Path) or path.exists() or path.is_absolute() or str(spec).startswith(".")
    return "folder" if is_path else "named"


def is_saved(path: Path) -> bool:
    """Whether ``datasets.save_to_disk`` wrote the folder."""
    return (path / STATE).is_file() or (path / DICT).is_file()


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a folder that hold rows: all but lists of captions, and none where there are pictures."""
    found = []
    for file in path.rglob("*"):
        if file.suffix.lower() in SUFFIXES:
            return []
        is_hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in PARQUET and file.name != "metadata.parquet" and not is_hidden:
            found.append(file)
    return sorted(found)
