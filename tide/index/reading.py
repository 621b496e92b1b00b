"""An index that is open: every part is read from disk when it is asked for."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tide.errors import TideError
from tide.files import read_json
from tide.files.rows import Rows
from tide.files.schema import check_schema
from tide.index.layout import (
    BY_LATENT,
    CODES,
    FACTS,
    FIRING,
    FORMAT,
    HEIGHTS,
    PICTURES,
    PLACE,
    SHEETS,
    TABLES,
    Facts,
    index_of,
)
from tide.index.tables import matching

if TYPE_CHECKING:
    from tide.interpretation.atlas import Atlas

_REMEDY = "make the index again (tide browse RUN --index, or tide atlas --index)"


@dataclass(frozen=True)
class Place:
    """The strongest latents of an image: ``latents [timesteps, cells, PLACE]`` int32, -1 where fewer fire, and
    their ``heights`` float16, the highest first."""

    latents: np.ndarray
    heights: np.ndarray


class Index:
    """The index of a run (:func:`~tide.index.build_index`).

    Raises :class:`~tide.errors.TideError` for a folder without a whole one, and where a file is missing or damaged. An
    index may be read by several threads at once.
    """

    def __init__(self, run: str | Path) -> None:
        self.run, self.folder = Path(run), index_of(run)
        path = self.folder / FACTS
        if not path.exists():
            raise TideError(f"{self.run} has no index; {_REMEDY}")
        found = read_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise TideError(f"{path} is of another version, or no index; {_REMEDY}")
        check_schema(found, Facts, str(path))
        self.facts: Facts = found  # type: ignore[assignment]
        self._by_latent: dict[str, Rows] = {}
        self.codes, self.heights = Rows(self.folder / CODES, "codes"), Rows(self.folder / HEIGHTS, "heights")
        if not (self.folder / TABLES).exists():
            raise TideError(f"{self.folder / TABLES} does not exist; {_REMEDY}")
        self._check_parts()

    def _check_parts(self) -> None:
        """That the parts are of one index: of as many latents, images, timesteps and places as the facts say."""
        n, images, steps, size = self.n_latents, self.n_images, self.facts["timesteps"], self.facts["map"]
        (counted,) = self.query(
            "SELECT (SELECT COUNT(*) FROM latents) AS latents, (SELECT COUNT(*) FROM images) AS images"
        )
        places = (images, len(steps), prod(size), PLACE)
        agree = (
            self.codes.shape == self.heights.shape == places
            and self.rows("frequency").shape == (n, len(steps))
            and self.rows("mean_map").shape == (n, *size)
            and Rows(self.folder / FIRING, "starts").shape == (n + 1,)
            and counted == {"latents": n, "images": images}
        )
        if not agree:
            raise TideError(f"{self.folder} is of two different indexes; {_REMEDY}")

    def rows(self, name: str) -> Rows:
        """The tensor ``name`` of all latents, a row each."""
        if name not in self._by_latent:
            found = Rows(self.folder / BY_LATENT, name)
            if len(found) != self.n_latents:
                raise TideError(f"{self.folder} is of two different indexes; {_REMEDY}")
            self._by_latent[name] = found
        return self._by_latent[name]

    @property
    def n_latents(self) -> int:
        """How many latents the index describes."""
        return self.facts["n_latents"]

    @property
    def n_images(self) -> int:
        """How many images it was made from."""
        return self.facts["n_images"]

    @property
    def n_shown(self) -> int:
        """How many frames are shown of each clip; 1 for images."""
        return len(self.facts["frames"]["shown"]) if "frames" in self.facts else 1

    def _database(self) -> sqlite3.Connection:
        db = sqlite3.connect(f"{(self.folder / TABLES).resolve().as_uri()}?mode=ro", uri=True)
        db.row_factory = sqlite3.Row
        return db

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows that a query of the tables (:mod:`tide.index.tables`) finds."""
        try:
            db = self._database()
            try:
                return [dict(row) for row in db.execute(sql, values)]
            finally:
                db.close()
        except sqlite3.DatabaseError as error:
            raise TideError(f"{self.folder / TABLES} cannot be read ({error}); {_REMEDY}") from error

    def columns(self) -> dict[str, np.ndarray]:
        """What latents are sorted and filtered by, an array ``[n_latents]`` each: ``frequency``, ``strongest``,
        ``auroc`` and ``monosemanticity`` (float32, NaN where there is none), ``step`` (int32), ``images`` (int32) and
        ``concept`` (int32, the place in :meth:`concepts`, -1 without one)."""
        place = {each["concept"]: i for i, each in enumerate(self.concepts())}
        found = self.query("SELECT * FROM latents ORDER BY latent")
        kinds = {
            "frequency": "f4",
            "strongest": "f4",
            "auroc": "f4",
            "monosemanticity": "f4",
            "step": "i4",
            "images": "i4",
        }
        columns = {name: np.array([row[name] for row in found], dtype=kind) for name, kind in kinds.items()}
        columns["concept"] = np.array([place.get(row["concept"], -1) for row in found], dtype="i4")
        return columns

    def concepts(self) -> list[dict[str, Any]]:
        """Every concept that labels a latent: ``concept``, ``level``, ``count`` of its latents, the ``best`` of them,
        and its ``auroc``; by level, the most clearly labelled first."""
        return self.query(
            "SELECT concept, level, COUNT(*) AS count, latent AS best, MAX(auroc) AS auroc FROM latents "
            "WHERE concept IS NOT NULL GROUP BY concept, level ORDER BY level, auroc DESC"
        )

    def search(self, text: str) -> dict[str, list[int]]:
        """All latents whose concept, and all images whose name or caption, hold words that begin as those of ``text``,
        ascending."""
        asked = matching(text)
        if not asked:
            return {"latents": [], "images": []}
        sql = "SELECT rowid FROM {0} WHERE {0} MATCH ?"
        return {
            name: [row["rowid"] for row in self.query(sql.format(table), (asked,))]
            for name, table in (("latents", "latent_text"), ("images", "image_text"))
        }

    def image(self, image: int) -> dict[str, Any]:
        """``name`` and ``caption`` of an image."""
        return self._image(image, "name, caption")

    def _image(self, image: int, columns: str) -> dict[str, Any]:
        self.check_image(image)
        found = self.query(f"SELECT {columns} FROM images WHERE image = ?", (image,))
        if not found:
            raise TideError(f"{self.folder / TABLES} lacks image {image}; {_REMEDY}")
        return found[0]

    def texts(self, images: Sequence[int]) -> dict[int, dict[str, Any]]:
        """:meth:`image` of several."""
        marks = ",".join("?" * len(images))
        found = self.query(
            f"SELECT image, name, caption FROM images WHERE image IN ({marks})", [int(i) for i in images]
        )
        return {row.pop("image"): row for row in found}

    def picture(self, image: int) -> bytes:
        """The JPEG of an image; of a clip :attr:`n_shown` frames side by side."""
        row = self._image(image, "start, end")
        size = row["end"] - row["start"]
        try:
            with (self.folder / PICTURES).open("rb") as file:
                file.seek(row["start"])
                found = file.read(size)
        except OSError as error:
            raise TideError(f"{self.folder / PICTURES} cannot be read ({error.strerror}); {_REMEDY}") from error
        if len(found) < size:
            raise TideError(f"{self.folder / PICTURES} is cut short; {_REMEDY}")
        return found

    def sheet(self, number: int) -> Path:
        """The file of a sheet of thumbnails (:func:`~tide.index.sheets.write_sheets`)."""
        path = self.folder / SHEETS / f"{int(number)}.jpg"
        if not path.is_file():
            raise TideError(f"there is no sheet {number}")
        return path

    def place(self, image: int) -> Place:
        """The strongest latents of every place of an image at every timestep."""
        self.check_image(image)
        return Place(self.codes[image], self.heights[image])

    def firing(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of all images on which a latent fires, ascending, and its peaks there."""
        self.check_latent(latent)
        path = self.folder / FIRING
        first, last = Rows(path, "starts")[latent : latent + 2].tolist()
        images, peaks = Rows(path, "images"), Rows(path, "peaks")
        if not 0 <= first <= last <= len(images) == len(peaks):
            raise TideError(f"{path} is damaged; {_REMEDY}")
        return images[first:last], peaks[first:last]

    def atlas(self) -> Atlas:
        """All latents in memory: what :func:`~tide.interpretation.gathered.build_atlas` makes of the same images with
        :data:`~tide.index.layout.TOP` top images of each latent, with labels, monosemanticity and texts."""
        import torch  # not needed by a server, which opens an index

        from tide.interpretation.atlas import Atlas, ImageText, Label

        by_latent = {
            name: torch.from_numpy(self.rows(name)[:])
            for name in ("frequency", "mean", "top_images", "top_values", "top_maps")
        }
        rows = self.query("SELECT concept, level, auroc, monosemanticity FROM latents ORDER BY latent")
        labels = tuple(
            None if row["concept"] is None else Label(row["concept"], row["level"], row["auroc"]) for row in rows
        )
        if clips := self.facts.get("frames"):
            along = {
                name: torch.from_numpy(self.rows(name)[:]).T.contiguous() for name in ("frame_frequency", "frame_mean")
            }
        texts = self.query("SELECT image, name, caption FROM images ORDER BY image")
        named = set(by_latent["top_images"].unique().tolist())
        scores = [torch.nan if row["monosemanticity"] is None else row["monosemanticity"] for row in rows]
        return Atlas(
            torch.tensor(self.facts["timesteps"], dtype=torch.float32),
            by_latent["frequency"].T.contiguous(),
            by_latent["mean"].T.contiguous(),
            by_latent["top_images"].long(),
            by_latent["top_values"],
            by_latent["top_maps"],
            self.n_images,
            self.facts["n_tokens"],
            labels=None if self.facts["labels"] == "none" else labels,
            monosemanticity=torch.tensor(scores, dtype=torch.float32),
            images={row["image"]: ImageText(row["name"], row["caption"]) for row in texts if row["image"] in named},
            **(along if clips else {}),
            n_frames=clips["total"] if clips else None,
        )

    def check_latent(self, latent: int) -> None:
        """Raises :class:`~tide.errors.TideError` unless there is a latent of this number."""
        if not 0 <= latent < self.n_latents:
            raise TideError(f"latent {latent} does not exist; there are 0..{self.n_latents - 1}")

    def check_image(self, image: int) -> None:
        """Raises :class:`~tide.errors.TideError` unless there is an image of this number."""
        if not 0 <= image < self.n_images:
            raise TideError(f"image {image} does not exist; there are 0..{self.n_images - 1}")
