"""What ``tide edit`` writes of its pictures, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from tide.runs import Contents


def write_pictures(
    out: Path,
    before: Image,
    after: Mapping[str, Image],
    labels: Sequence[str],
    title: str,
    report: dict[str, Any],
    holds: Contents,
    made_by: dict[str, Any],
    more: Mapping[str, Image] | None = None,
) -> None:
    """Writes all pictures and edit.json or none of them, then run.json.

    ``labels``: of the pictures ``after`` in strip.png, above which stands ``title``. ``more``: others, by their names.
    """
    from tide.cli.common import writing
    from tide.clip import fewer_frames, is_clip
    from tide.files import json_writer, replace_files
    from tide.pictures import picture_writer
    from tide.runs import FileKind, write_run
    from tide.strips import Row, labelled

    pictures = {"before": before, **{f"after-{name}": image for name, image in after.items()}, **(more or {})}
    shown = [fewer_frames(each) for each in (before, *after.values())]
    # Clips below each other, pictures side by side.
    rows = [Row([each], [label]) for each, label in zip(shown, ["before", *labels], strict=True)]
    pictures["strip"] = labelled(rows if is_clip(before) else [Row(shown, ["before", *labels])], title)
    names = {name: f"{name}{'.webp' if is_clip(each) else '.png'}" for name, each in pictures.items()}
    files: dict[str, FileKind] = {**dict.fromkeys(names.values(), "picture"), "edit.json": "figures"}
    with writing(out):
        writers = {out / names[name]: picture_writer(picture) for name, picture in pictures.items()}
        replace_files({**writers, out / "edit.json": json_writer(report)})
        write_run(out, replace(holds, files=files), made_by)


def mean_change(before: Image, after: Image) -> float:
    """Mean absolute difference of the pixels' channels, of 255."""
    import numpy as np

    return float(np.abs(np.asarray(before, float) - np.asarray(after, float)).mean())
