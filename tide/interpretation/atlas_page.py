"""An atlas as one self-contained HTML file: images, maps and numbers, drawn by its own script."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tide.clip import RATE, ShownFrames, shown_frames
from tide.editing.masks import token_frames
from tide.errors import TideError
from tide.files import replace_file
from tide.interpretation.atlas import Atlas, ImageText, Label, shortened
from tide.pictures import HEAT, INK, KEPT, LINE, POWER, VEIL, heat_key, resized, shown

#: The page's file in the folder of an atlas.
PAGE = "atlas.html"
#: Pixels of the longer side of a thumbnail at most.
THUMBNAIL = 96
#: Thumbnails in a row and in a column of a sheet, which stays below the size limit of a canvas in every browser.
SHEET_SIDE = 8
JPEG_QUALITY = 88


def thumbnail(image: np.ndarray) -> np.ndarray:
    """``image`` uint8 ``[H, W, 3]``, shrunk so that its longer side is at most :data:`THUMBNAIL`; of a clip ``[F, H, W,
    3]`` the frames :func:`~tide.clip.shown_frames`."""
    image = shown(image)
    height, width = image.shape[-3:-1]
    factor = THUMBNAIL / max(height, width)
    if factor >= 1:
        return image
    return resized(image, (max(1, round(width * factor)), max(1, round(height * factor))))


def write_atlas(
    path: str | Path,
    atlas: Atlas,
    images: Sequence[np.ndarray],
    *,
    title: str,
    note: str = "",
    limit: int = 4096,
) -> None:
    """Writes the page ``path`` of the ``limit`` most active latents that ever fire.

    ``images[i]`` is image i of the atlas, uint8 ``[H, W, 3]``, all of one size; only those that a latent on the page
    names are written, as thumbnails with their names and captions. Clips are ``[F, H, W, 3]``, whole or as
    :func:`thumbnail` makes them; the page plays them. ``note`` is a sentence for the header, such as how labels were
    measured.

    ``title`` is the page's heading.

    Raises :class:`~tide.errors.TideError` if no latent fires, for a ``limit`` below 1, and for images that do not fit
    the atlas.
    """
    latents = _most_active(atlas, limit)
    data = _data(atlas, latents, images)
    dead = int(atlas.dead.sum())
    alive = atlas.n_latents - dead
    cut = f"The page holds the {len(latents):,} most active of the {alive:,} latents that fire."
    parts = {
        "title": escape(title),
        "note": escape(" ".join(filter(None, (cut if len(latents) < alive else "", _about_frames(data), note)))),
        "latents": f"{atlas.n_latents:,}",
        "dead": f"{dead:,}",
        "images": f"{atlas.n_images:,}",
        "picture": "image" if atlas.frame_mean is None else "clip",
        "timesteps": str(len(atlas.timesteps)),
        "key": heat_key(),
        # A name that ends the script element would end the data.
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = files("tide.interpretation").joinpath("atlas.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)  # once: no part is searched for others
    replace_file(Path(path), lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _data(atlas: Atlas, latents: Tensor, images: Sequence[np.ndarray]) -> dict[str, Any]:
    """What the page's script draws: ``latents`` of the atlas, and thumbnails of the images that they name."""
    top = atlas.top_images[latents]
    used, place = torch.unique(top[top >= 0], return_inverse=True)
    if int(used[-1]) >= len(images):
        raise TideError(f"the atlas names image {int(used[-1])} and {len(images)} images are given; give all of them")
    if len({image.shape for image in images}) > 1:
        raise TideError("the images of an atlas differ in size; crop them to one size")
    sprites = torch.full_like(top, -1)
    sprites[top >= 0] = place
    concepts, named = _named(atlas.labels, latents.tolist())
    scores = atlas.monosemanticity
    order = atlas.timesteps.argsort(descending=True)  # noise first, as the denoising goes
    frames, packed = _frames(atlas, latents, images[0])
    return {
        "n": atlas.n_latents,
        "timesteps": atlas.timesteps[order].tolist(),
        "top": top.shape[1],
        "map": list(atlas.maps.shape[2:]),
        "heat": HEAT.tolist(),
        "veil": {"grey": VEIL, "kept": KEPT, "power": POWER, "line": LINE, "ink": INK},
        **_sheets([images[i] for i in used.tolist()]),
        "texts": None if atlas.images is None else [_text(atlas.images[i]) for i in used.tolist()],
        "concepts": concepts,
        **frames,
        "arrays": {
            "latent": _packed(latents, "<u4"),
            "dead": _packed(atlas.dead.nonzero().flatten(), "<u4"),
            "frequency": _packed(atlas.frequency[order][:, latents].T, "<f4"),
            "mean": _packed(atlas.mean[order][:, latents].T, "<f4"),
            "image": _packed(used, "<u4"),
            "sprite": _packed(sprites, "<i4"),
            "value": _packed(atlas.top_values[latents], "<f4"),
            "map": _packed(atlas.maps[latents], "u1"),
            **{name: _packed(values, "<i4" if name == "concept" else "<f4") for name, values in named.items()},
            **({} if scores is None else {"monosemanticity": _packed(scores[latents], "<f4")}),
            **packed,
        },
    }


def _frames(atlas: Atlas, latents: Tensor, image: np.ndarray) -> tuple[dict[str, Any], dict[str, str]]:
    """What the page is told of clips: of the frames that it shows their numbers, and the frames of the maps that cover
    them; and what latents do in each frame of tokens. Both empty for images."""
    if (image.ndim == 4) != (atlas.frame_mean is not None):
        raise TideError("an atlas of clips needs clips [F, H, W, 3], and one of images needs images; give those read")
    if atlas.frame_frequency is None or atlas.frame_mean is None or atlas.motion is None:
        return {}, {}
    tokens = len(atlas.frame_mean)
    n = atlas.n_frames or len(image)
    if len(image) not in (n, len(shown_frames(n))):
        raise TideError(f"the atlas is of clips of {n} frames and one of {len(image)} is given; give those read")
    return {"frames": about_frames(n, tokens, atlas.maps.shape[2])}, {
        "frameFrequency": _packed(atlas.frame_frequency[:, latents].T, "<f4"),
        "frameMean": _packed(atlas.frame_mean[:, latents].T, "<f4"),
        "motion": _packed(atlas.motion[latents], "<f4"),
    }


def _about_frames(data: dict[str, Any]) -> str:
    if (frames := data.get("frames")) is None:
        return ""
    n = f"{len(frames['shown'])} of the {frames['total']}" if len(frames["shown"]) < frames["total"] else "all"
    return (
        f"Of a clip {n} frames are shown; the transformer sees {frames['tokens']} frames of tokens. Motion is how "
        "far a latent's place moves while it fires, as a share of the frame's longer side."
    )


def about_frames(n_frames: int, tokens: int, cells: int) -> ShownFrames:
    """What a page needs to play clips; the arguments are those of :func:`shown_maps`."""
    maps = shown_maps(n_frames, tokens, cells)
    return {"total": n_frames, "tokens": tokens, "shown": shown_frames(n_frames), "map": maps, "rate": RATE}


def shown_maps(n_frames: int, tokens: int, cells: int) -> list[int]:
    """For each of a clip's :func:`~tide.clip.shown_frames` the frame of a map that covers it.

    Args:
        n_frames: of the clip.
        tokens: its frames of tokens.
        cells: the frames of a map, to which those of the tokens are pooled evenly.
    """
    of_frame = token_frames(n_frames, tokens)
    return [int((of_frame[frame] + 0.5) * cells / tokens) for frame in shown_frames(n_frames)]


def _text(image: ImageText) -> tuple[str, str]:
    return image.name, shortened(image.caption)


def _most_active(atlas: Atlas, limit: int) -> Tensor:
    """The ``limit`` latents that fire most, in ascending order, int64; of equally active ones the first."""
    if limit < 1:
        raise TideError(f"a page of {limit} latents shows nothing; give a limit of at least 1")
    activity = atlas.activity
    alive = (~atlas.dead).nonzero().flatten()
    if len(alive) == 0:
        raise TideError(
            f"none of the {atlas.n_latents} latents fires on these images; train the SAE for longer, or give images "
            "of the kind that it was trained on"
        )
    ranked = alive[activity[alive].argsort(descending=True, stable=True)]
    return ranked[:limit].sort().values


def _packed(values: Tensor, kind: str) -> str:
    """Numbers as base64 of a little-endian array, row by row."""
    return base64.b64encode(np.ascontiguousarray(values.cpu().numpy().astype(kind)).tobytes()).decode()


def _named(
    labels: Sequence[Label | None] | None, latents: list[int]
) -> tuple[list[tuple[str, str]], dict[str, Tensor]]:
    """The concepts as pairs of name and level, in the order of the levels; for each latent its ``concept`` (an index,
    or -1) and its ``auroc``. Both empty without labels."""
    if labels is None:
        return [], {}
    found = [labels[i] for i in latents]
    concepts = sorted({(label.concept, label.level) for label in found if label}, key=lambda pair: pair[::-1])
    index = {pair: i for i, pair in enumerate(concepts)}
    return concepts, {
        "concept": torch.tensor([index[label.concept, label.level] if label else -1 for label in found]),
        "auroc": torch.tensor([label.auroc if label else torch.nan for label in found]),
    }


def _sheets(images: list[np.ndarray]) -> dict[str, Any]:
    """The thumbnails of images of one size on sheets, with where to find them; of clips one frame after the other."""
    shrunk = [thumbnail(image) for image in images]
    small = [frame for clip in shrunk for frame in clip] if shrunk[0].ndim == 4 else shrunk
    height, width = small[0].shape[:2]
    # JPEG codes blocks of 8 pixels: the repeated border fills the last blocks, so that no neighbour bleeds in.
    pitch = (8 * ceil(height / 8), 8 * ceil(width / 8))
    padding = ((0, pitch[0] - height), (0, pitch[1] - width), (0, 0))
    sheets = []
    for first in range(0, len(small), SHEET_SIDE**2):
        part = small[first : first + SHEET_SIDE**2]
        columns = min(SHEET_SIDE, len(part))
        sheet = np.zeros((ceil(len(part) / columns) * pitch[0], columns * pitch[1], 3), dtype=np.uint8)
        for i, image in enumerate(part):
            y, x = i // columns * pitch[0], i % columns * pitch[1]
            sheet[y : y + pitch[0], x : x + pitch[1]] = np.pad(image, padding, mode="edge")
        sheets.append(_encoded(sheet))
    return {
        "tile": {"height": height, "width": width, "pitch": pitch, "columns": SHEET_SIDE, "perSheet": SHEET_SIDE**2},
        "shrunk": small[0].shape != images[0].shape[-3:],
        "sheets": sheets,
    }


def _encoded(sheet: np.ndarray) -> str:
    """``sheet [H, W, 3]`` as the ``data:`` address of a PNG or a JPEG, whichever is smaller."""
    written = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": JPEG_QUALITY, "subsampling": 0})):
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, kind, **options)
        written[kind] = buffer.getvalue()
    kind = min(written, key=lambda each: len(written[each]))
    return f"data:image/{kind};base64," + base64.b64encode(written[kind]).decode()
