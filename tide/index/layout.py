"""What an index holds, under which names, and how many bytes it takes."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from tide.clip import SHOWN, ShownFrames
from tide.messages import readable_size

FORMAT = "tide-index/1"
#: Within the folder of a checkpoint or an atlas.
FOLDER = "index"
#: Where it is made until it is whole.
UNFINISHED = "index-unfinished"

FACTS, TABLES = "index.json", "index.sqlite"
SHEETS, PICTURES = "sheets", "pictures.bin"
#: Tensors by latent, the strongest latents of each place and their heights, and the images by the latents that fire.
BY_LATENT, CODES, HEIGHTS, FIRING = (f"{each}.safetensors" for each in ("by_latent", "codes", "heights", "firing"))
#: All of them, what says that they are whole the last.
PARTS = (BY_LATENT, CODES, HEIGHTS, FIRING, PICTURES, SHEETS, TABLES, FACTS)

#: Images of each latent on which it peaks highest, and images drawn at random from all on which it fires.
TOP, DRAWN = 8, 12
#: The strongest latents that are kept of each place of an image at each timestep.
PLACE = 16
#: Numbers of a latent's sketch, whose cosines estimate those of its maps on all images: to 1 / sqrt(512), 0.04.
SKETCH = 512
#: Latents that are listed beside each.
NEIGHBOURS = 12
#: Pixels of a thumbnail's longer side, and thumbnails along a sheet.
TILE, SHEET_SIDE = 64, 16
#: Pixels of the longer side of a picture at most.
PICTURE = 384
#: Bytes of a pixel of a picture: of one that is enlarged on the page (at most :data:`SMALL` pixels a side), of a larger
#: one, and of a thumbnail.
SMALL, OF_SMALL, OF_LARGE, OF_TILE = 128, 0.7, 0.25, 0.4


class Facts(TypedDict):
    """``index.json``."""

    format: str
    n_latents: int
    n_images: int
    n_tokens: int
    dead: int
    grid: list[int]
    map: list[int]
    timesteps: list[float]
    block: int
    family: str | None
    pipeline: str | None
    sae: str
    sae_config: dict[str, Any]
    data: str
    data_digest: str
    labels: str
    monosemanticity: str
    picture: list[int]
    tile: list[int]
    seed: int
    frames: NotRequired[ShownFrames]  # of clips


def index_of(run: str | Path) -> Path:
    """The folder of the index of a run."""
    return Path(run) / FOLDER


def index_bytes(
    n_latents: int,
    n_images: int,
    n_timesteps: int,
    cells: int,
    l0: float,
    size: tuple[int, ...] = (PICTURE, PICTURE),
) -> dict[str, int]:
    """Bytes of the parts of an index, by what they are. ``cells``: places of a map. ``l0``: latents that fire at a
    token on average; an image is taken to have a tenth as many different ones for each place. ``size``: height and
    width of an image in pixels; of a clip its frames before them.

    ``n_latents`` latents are read on ``n_images`` images at ``n_timesteps`` timesteps.
    """
    per_latent = (TOP + DRAWN + 1) * cells + 8 * (TOP + DRAWN) + 2 * SKETCH + 16 * NEIGHBOURS + 8 * n_timesteps + 200
    firing = min(n_latents, l0 * (1 + cells / 10))
    return {
        "latents": n_latents * per_latent,
        "what fires where": n_images * n_timesteps * cells * PLACE * 6,
        "peaks": int(n_images * firing * 8),
        "pictures": int(n_images * _picture_bytes(size)),
    }


def _picture_bytes(size: tuple[int, ...]) -> float:
    """Of a picture and its thumbnail."""
    n, sides = prod(min(SHOWN, each) for each in size[:-2]), size[-2:]
    height, width = (side * min(1.0, PICTURE / max(sides)) for side in sides)
    thumbnail = TILE**2 * min(sides) / max(sides)
    return n * (height * width * (OF_SMALL if max(sides) <= SMALL else OF_LARGE) + thumbnail * OF_TILE)


def sizes_in_words(
    n_latents: int,
    n_images: int,
    n_timesteps: int,
    cells: int,
    l0: float,
    size: tuple[int, ...] = (PICTURE, PICTURE),
) -> str:
    """The size of an index in a sentence, for somebody who is about to make one; arguments of :func:`index_bytes`.

    These are ``n_latents``, ``n_images``, ``n_timesteps``, ``cells``, ``l0`` and ``size``.
    """
    parts = index_bytes(n_latents, n_images, n_timesteps, cells, l0, size)
    listed = ", ".join(f"{name} {readable_size(size)}" for name, size in parts.items())
    working = n_latents * (TOP + DRAWN + 2) * cells * 4 + n_latents * 4 * SKETCH
    return (
        f"An index of {n_latents:,} latents on {n_images:,} images takes about {readable_size(sum(parts.values()))} "
        f"({listed}), and {readable_size(working)} of memory while it is made"
    )
