"""What the page is sent: numbers as bytes where there are many, JSON elsewhere."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tide.files.writing import finite
from tide.images.identity import digest
from tide.index import Index
from tide.index.layout import FACTS, SHEET_SIDE
from tide.pictures import HEAT, KEPT, POWER, VEIL

#: Top images on the card of a latent.
ON_CARD = 4


def facts(index: Index) -> dict[str, Any]:
    """What the page knows of a run before it asks for anything else."""
    said = index.facts
    return {
        "nLatents": said["n_latents"],
        "nImages": said["n_images"],
        "dead": said["dead"],
        "grid": said["grid"],
        "map": said["map"],
        "timesteps": said["timesteps"],
        "block": said["block"],
        "pipeline": said["pipeline"],
        "data": said["data"],
        "labels": said["labels"],
        "sae": said["sae"],
        "stamp": digest(repr((said, (index.folder / FACTS).stat().st_mtime_ns))),
        "picture": said["picture"],
        "tile": said["tile"],
        "sheetSide": SHEET_SIDE,
        "onCard": ON_CARD,
        "concepts": index.concepts(),
        "heat": HEAT.tolist(),
        "veil": {"grey": VEIL, "kept": KEPT, "power": POWER},
        **({"frames": said["frames"]} if "frames" in said else {}),
    }


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as one message: the length of a JSON header (4 bytes), the header with name, type and shape of each and
    where it begins, then the arrays, each at a multiple of 4 bytes."""
    kinds = {"f4": "f32", "i4": "i32", "u1": "u8"}
    at, entries, parts = 0, [], []
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        data = plain.tobytes()
        data += bytes(-len(data) % 4)
        entries.append({"name": name, "kind": kinds[plain.dtype.str[1:]], "shape": plain.shape, "start": at})
        parts.append(data)
        at += len(data)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 4)
    return struct.pack("<I", len(header)) + header + b"".join(parts)


def columns(index: Index) -> bytes:
    return packed(index.columns())


def cards(index: Index, latents: Sequence[int]) -> bytes:
    """What the cards of latents show."""
    for latent in latents:
        index.check_latent(latent)
    return packed(
        {
            "latent": np.array(latents, dtype="i4"),
            "frequency": index.rows("frequency")[latents].astype("f4"),
            "images": index.rows("top_images")[latents][:, :ON_CARD],
            "maps": index.rows("top_maps")[latents][:, :ON_CARD],
        }
    )


def latent(index: Index, number: int) -> dict[str, Any]:
    """Everything about a latent."""
    index.check_latent(number)
    (row,) = index.query("SELECT * FROM latents WHERE latent = ?", (number,))
    top, drawn = (_shown(index, number, kind) for kind in ("top", "drawn"))
    texts = index.texts(sorted({each["image"] for each in top + drawn}))
    for each in top + drawn:
        each |= texts[each["image"]]
    neighbours = {
        kind: [
            {"latent": int(other), "cosine": float(cosine)}
            for other, cosine in zip(index.rows(kind)[number], index.rows(f"{kind}_cosine")[number], strict=True)
            if other >= 0
        ]
        for kind in ("fires", "writes")
    }
    found = {
        **row,
        "frequencies": index.rows("frequency")[number].tolist(),
        "means": index.rows("mean")[number].tolist(),
        "meanMap": _text(index.rows("mean_map")[number]),
        **(_along_frames(index, number) if "frames" in index.facts else {}),
        "top": top,
        "drawn": drawn,
        **neighbours,
    }
    return finite(found)


def _along_frames(index: Index, number: int) -> dict[str, Any]:
    """Of clips: what a latent does in each frame of tokens, and how far its place moves."""
    return {
        "frameFrequencies": index.rows("frame_frequency")[number].tolist(),
        "frameMeans": index.rows("frame_mean")[number].tolist(),
        "motion": float(index.rows("motion")[number]),
    }


def _shown(index: Index, number: int, kind: str) -> list[dict[str, Any]]:
    images, values = index.rows(f"{kind}_images")[number], index.rows(f"{kind}_values")[number]
    maps = index.rows(f"{kind}_maps")[number]
    return [
        {"image": int(image), "value": float(value), "heat": _text(heat)}
        for image, value, heat in zip(images, values, maps, strict=True)
        if image >= 0
    ]


def image(index: Index, number: int) -> dict[str, Any]:
    """An image's name and caption; what fires in it comes as :func:`places`."""
    return {"image": number, **index.image(number)}


def places(index: Index, number: int) -> bytes:
    """The strongest latents of each place of an image at each timestep."""
    found = index.place(number)
    return packed({"latents": found.latents, "heights": found.heights.astype("f4")})


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
