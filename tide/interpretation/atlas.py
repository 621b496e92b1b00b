"""An atlas of all latents: how often each fires along the denoising, and the images and places that drive it most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.statistics import auroc
from tide.files import check_tensors, json_writer, read_json, read_tensors, replace_files, tensors_writer
from tide.files.schema import check_schema
from tide.interpretation.frames import motion
from tide.messages import one_line

#: A latent gets a concept's name from this AUROC on.
LEAST_AUROC = 0.8
#: Tokens that a concept needs to name latents. The AUROC of an unrelated score over P tokens varies by 1 / sqrt(12 P):
#: with 10 tokens, the best of thousands of latents reaches 0.8 by chance.
LEAST_TOKENS = 50
#: Characters of an image's caption that are kept.
MOST_CAPTION = 1000

TENSORS = "atlas.safetensors"
FACTS = "atlas.json"
FORMAT = "tide-atlas/1"
_REMEDY = "make the atlas again"


@dataclass(frozen=True)
class Label:
    """The concept that a latent fits best, and the AUROC of the latent's maps for the concept's masks.

    Attributes:
        concept: its name.
        level: of the concept, such as "colour".
        auroc: of the latent's maps for the concept's masks.
    """

    concept: str
    level: str
    auroc: float


@dataclass(frozen=True)
class ImageText:
    """What an image is called in its data, and its caption, which :func:`shortened` bounds."""

    name: str
    caption: str


def shortened(caption: str) -> str:
    """The first :data:`MOST_CAPTION` characters, the last of them an ellipsis if there are more."""
    return caption if len(caption) <= MOST_CAPTION else f"{caption[: MOST_CAPTION - 1]}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Atlas:
    """What every latent does on a set of images.

    Attributes:
        timesteps: ``[T]`` float32.
        frequency: share of the tokens on which the latent is positive, at each timestep, ``[T, n_latents]`` float32.
        mean: its mean value over all tokens, silent ones included, ``[T, n_latents]`` float32.
        top_images: the images on which it peaks highest, ``[n_latents, m]`` int64, the strongest first, the earliest of
            equal ones first; -1 if it fires on fewer than m images.
        top_values: the peak over the tokens of its map averaged over the timesteps, ``[n_latents, m]`` float32; 0
            without an image.
        maps: that map for each top image, ``[n_latents, m, h, w]`` uint8, pooled by area to at most
            :data:`~tide.interpretation.gathered.MAP_SIDE` rows and columns; 255 is the strongest place of all the
            latent's maps. Of clips ``[n_latents, m, frames, h, w]``, with at most
            :data:`~tide.interpretation.frames.MAP_FRAMES` frames.
        n_images, n_tokens: how many images were read, and the tokens of each.
        labels: the concept of each latent, where it has one.
        monosemanticity: a score of each latent, ``[n_latents]`` float32; NaN where there is none.
        images: name and caption of every image among ``top_images``, by its number.
        frame_frequency, frame_mean: of clips ``frequency`` and ``mean`` in each frame of tokens, averaged over the
            timesteps, ``[frames, n_latents]`` float32; None for images.
        n_frames: how many frames a clip has; None for images, or where it is not known.
    """

    timesteps: Tensor
    frequency: Tensor
    mean: Tensor
    top_images: Tensor
    top_values: Tensor
    maps: Tensor
    n_images: int
    n_tokens: int
    labels: tuple[Label | None, ...] | None = None
    monosemanticity: Tensor | None = None
    images: Mapping[int, ImageText] | None = None
    frame_frequency: Tensor | None = None
    frame_mean: Tensor | None = None
    n_frames: int | None = None

    def __post_init__(self) -> None:
        n, m = self.n_latents, self.top_images.shape[-1]
        frames = None if self.frame_mean is None else len(self.frame_mean)
        for name, wanted in {
            "timesteps": (len(self.frequency),),
            "mean": (len(self.timesteps), n),
            "top_images": (n, m),
            "top_values": (n, m),
            "maps": (n, m, *self.maps.shape[-2:]) if frames is None else (n, m, *self.maps.shape[-3:]),
            **({} if self.monosemanticity is None else {"monosemanticity": (n,)}),
            **({} if frames is None else dict.fromkeys(("frame_frequency", "frame_mean"), (frames, n))),
        }.items():
            if (found := tuple(getattr(getattr(self, name), "shape", ()))) != wanted:
                raise TideError(f"{name} of an atlas is {list(found)}, and its other tensors ask for {list(wanted)}")
        if self.labels is not None and len(self.labels) != n:
            raise TideError(f"{len(self.labels)} labels for {n} latents; give one a latent, None where it has none")
        if self.images is not None and self.images.keys() != self.named_images():
            raise TideError("the images of an atlas are not those that its latents name; give exactly these")

    def named_images(self) -> set[int]:
        """The images that are among the top images of any latent."""
        return set(self.top_images[self.top_images >= 0].unique().tolist())

    @property
    def n_latents(self) -> int:
        """How many latents there are, silent ones included."""
        return self.frequency.shape[1]

    @property
    def activity(self) -> Tensor:
        """The frequency averaged over the timesteps, ``[n_latents]``."""
        return self.frequency.mean(0)

    @property
    def dead(self) -> Tensor:
        """Latents that never fired, bool ``[n_latents]``."""
        return (self.frequency == 0).all(0)

    @property
    def motion(self) -> Tensor | None:
        """How far each latent's place moves over the frames of its top clips (:func:`tide.interpretation.motion`),
        ``[n_latents]``; None for images."""
        return motion(self.maps) if self.maps.ndim == 5 else None

    def save(self, folder: str | Path, **notes: Any) -> None:
        """Writes ``atlas.safetensors`` and ``atlas.json``; ``notes`` (JSON values) go into the latter."""
        folder = Path(folder)
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        named = None if self.labels is None else {i: asdict(each) for i, each in enumerate(self.labels) if each}
        facts = {
            "format": FORMAT,
            "n_latents": self.n_latents,
            "dead": int(self.dead.sum()),
            "n_images": self.n_images,
            "n_tokens": self.n_tokens,
            "timesteps": self.timesteps.tolist(),
            "labels": named,
            "images": None if self.images is None else {i: asdict(each) for i, each in self.images.items()},
            **({} if self.n_frames is None else {"n_frames": self.n_frames}),
            **notes,
        }
        replace_files({folder / TENSORS: tensors_writer(tensors), folder / FACTS: json_writer(facts)})

    @classmethod
    def load(cls, folder: str | Path) -> Atlas:
        """Reads what :meth:`save` wrote; raises :class:`~tide.errors.TideError` for anything else."""
        folder = Path(folder)
        facts = read_json(folder / FACTS)
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise TideError(f"{folder / FACTS} is not of an atlas; give the folder that `tide atlas` wrote")
        check_schema(facts, _Facts, str(folder / FACTS))
        tensors = read_tensors(folder / TENSORS, "the atlas")
        _check(folder / TENSORS, tensors, facts["n_latents"], facts["n_images"])
        labels = None if facts["labels"] is None else _labels(folder / FACTS, facts["labels"], facts["n_latents"])
        images = (
            None if facts.get("images") is None else _images(folder / FACTS, facts["images"], tensors["top_images"])
        )
        return cls(
            **tensors,
            n_images=facts["n_images"],
            n_tokens=facts["n_tokens"],
            labels=labels,
            images=images,
            n_frames=facts.get("n_frames"),
        )


class _Facts(TypedDict):
    """The part of the file that :meth:`Atlas.load` needs."""

    n_latents: int
    n_images: int
    n_tokens: int
    labels: dict[str, Label] | None
    images: NotRequired[dict[str, ImageText] | None]  # not in those of older versions
    n_frames: NotRequired[int]  # of clips


def _check(path: Path, tensors: dict[str, Tensor], n_latents: int, n_images: int) -> None:
    """Raises unless the tensors are those of an atlas of so many latents and images."""
    maps, timesteps = (tensors.get(name, torch.empty(0)) for name in ("maps", "timesteps"))
    of_clips = "frame_mean" in tensors
    if (
        maps.ndim != 4 + of_clips
        or timesteps.ndim != 1
        or not maps.numel()
        or not len(timesteps)
        or len(maps) != n_latents
    ):
        raise TideError(f"{path} holds no maps of {n_latents} latents, or no timesteps; {_REMEDY}")
    like = {
        "timesteps": torch.empty_like(timesteps, dtype=torch.float32, device="meta"),
        "frequency": torch.empty(len(timesteps), n_latents, device="meta"),
        "mean": torch.empty(len(timesteps), n_latents, device="meta"),
        "top_images": torch.empty(maps.shape[:2], dtype=torch.int64, device="meta"),
        "top_values": torch.empty(maps.shape[:2], device="meta"),
        "maps": torch.empty_like(maps, dtype=torch.uint8, device="meta"),
    }
    found = dict(tensors)
    if of_clips:
        frames = len(tensors["frame_mean"]) if tensors["frame_mean"].ndim else 0
        if frames < maps.shape[2]:
            raise TideError(f"{path} has maps of {maps.shape[2]} frames, and latents of {frames}; {_REMEDY}")
        like |= dict.fromkeys(("frame_frequency", "frame_mean"), torch.empty(frames, n_latents, device="meta"))
    if (scores := found.get("monosemanticity")) is not None:
        like["monosemanticity"] = torch.empty(n_latents, device="meta")
        if scores.dtype == torch.float32:
            found["monosemanticity"] = scores.nan_to_num(0.0, posinf=math.inf, neginf=-math.inf)
    check_tensors(path, found, like, remedy=_REMEDY)
    shares = ("frequency", *(("frame_frequency",) if of_clips else ()))
    for name, low, high in (("top_images", -1, n_images - 1), *((name, 0, 1) for name in shares)):
        if tensors[name].min() < low or tensors[name].max() > high:
            raise TideError(f"{path}: {name} reaches outside of {low} to {high}; {_REMEDY}")


def _labels(path: Path, named: dict[str, dict[str, Any]], n_latents: int) -> tuple[Label | None, ...]:
    places = {str(i): i for i in range(n_latents)}
    if unknown := named.keys() - places.keys():
        raise TideError(
            f"{path}: labels.{one_line(min(unknown), 40)} belongs to none of the {n_latents} latents; {_REMEDY}"
        )
    found: list[Label | None] = [None] * n_latents
    for name, each in named.items():
        found[places[name]] = Label(each["concept"], each["level"], each["auroc"])
    return tuple(found)


def _images(path: Path, named: dict[str, dict[str, Any]], top_images: Tensor) -> dict[int, ImageText]:
    places = {str(i): i for i in top_images[top_images >= 0].unique().tolist()}
    if named.keys() != places.keys():
        odd = min(named.keys() ^ places.keys())
        raise TideError(
            f"{path}: images.{one_line(odd, 40)} is missing, or of an image that no latent names; {_REMEDY}"
        )
    return {places[name]: ImageText(each["name"], shortened(each["caption"])) for name, each in named.items()}


def label_latents(
    latents: Tensor, masks: Mapping[str, Tensor], level_of: Mapping[str, str], *, least: float = LEAST_AUROC
) -> tuple[Label | None, ...]:
    """For each latent the concept whose mask it fits best, where its AUROC is at least ``least``.

    ``latents [rows, n_latents]`` and ``masks[concept] [rows]`` bool have one row for each token. Choice and AUROC use
    the same rows, so the AUROC is optimistic. Concepts on fewer than :data:`LEAST_TOKENS` rows, or on all of them,
    label nothing.

    ``level_of`` says each concept's level, for the labels.
    """
    concepts = [concept for concept, mask in masks.items() if LEAST_TOKENS <= int(mask.sum()) < len(mask)]
    if not concepts:
        return (None,) * latents.shape[1]
    table = auroc(latents, torch.stack([masks[concept] for concept in concepts], dim=1))
    best = [(float(value), concepts[i]) for value, i in zip(*(each.tolist() for each in table.max(1)), strict=True)]
    return tuple(Label(concept, level_of[concept], value) if value >= least else None for value, concept in best)
