"""The judge: a small network that reads every attribute off an image, finds where its object, shadow, ground and sky
are, and distinguishes scenes from wrecked images.

Its class head has one more answer, "no valid object", learned from destroyed images (:func:`destroy`), so that an
edit that wrecks the image never counts as a change of class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tide.errors import TideError
from tide.files import check_tensors, json_writer, read_json, read_tensors, replace_files, tensors_writer
from tide.images.tensors import to_tensor
from tide.sae.checkpoint import CONFIG, WEIGHTS
from tide.scenes.pipeline import DATA
from tide.scenes.render import REGIONS
from tide.scenes.scene import ATTRIBUTES, Scene

NO_OBJECT = "no valid object"
#: The largest width that is accepted; the shipped judge has 32.
WIDEST = 1024
HEADS: dict[str, tuple[str, ...]] = {**ATTRIBUTES, "class": (*ATTRIBUTES["class"], NO_OBJECT)}


@dataclass(frozen=True)
class Verdict:
    """What the judge reads off one image: attribute -> value. ``valid`` is False for wreckage.

    Attributes:
        attributes: attribute -> the most probable value.
        confidence: attribute -> its probability.
    """

    attributes: dict[str, str]
    confidence: dict[str, float]

    @property
    def valid(self) -> bool:
        """Whether the image shows an object of a known class."""
        return self.attributes["class"] != NO_OBJECT

    def agrees(self, scene: Scene, attribute: str) -> bool:
        """Whether the image is valid and shows the scene's value of ``attribute``."""
        return self.valid and self.attributes[attribute] == scene[attribute]


class Judge(nn.Module):
    """Four strided convolutions and a linear layer; images ``[B, 3, 64, 64]`` in [-1, 1] to logits per attribute.

    A branch that goes back up and adds the convolutions' outputs gives the logits of every pixel's region.

    ``width`` is the number of channels of the first convolution.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        channels = (3, width, 2 * width, 3 * width, 4 * width)
        self.down = nn.ModuleList(_convolution(a, b, stride=2) for a, b in pairwise(channels))
        self.embedding = nn.Sequential(nn.Flatten(), nn.Linear(channels[-1] * 16, 4 * width), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(4 * width, len(values)) for name, values in HEADS.items()})
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[1:])
        self.smooth = nn.ModuleList(_convolution(width, width) for _ in channels[2:])
        self.region = nn.Conv2d(width, len(REGIONS), 1)

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits ``[B, values]`` of every head, and of the regions ``[B, 4, 64, 64]``."""
        levels = self._levels(images)
        features = self.embedding(levels[-1])
        x = self.lateral[-1](levels[-1])
        for i in range(len(levels) - 2, -1, -1):
            x = self.smooth[i](F.interpolate(x, scale_factor=2.0) + self.lateral[i](levels[i]))
        regions = F.interpolate(self.region(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return {name: head(features) for name, head in self.heads.items()}, regions

    def _levels(self, images: Tensor) -> list[Tensor]:
        levels = []
        for down in self.down:
            images = down(images)
            levels.append(images)
        return levels

    def _checked(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, 64, 64):
            raise TideError(f"the judge reads images [B, 3, 64, 64], not {list(images.shape)}; resize them first")
        return images.to(next(self.parameters()).device, torch.float32)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """What the heads read: features ``[B, 4 * width]`` of images ``[B, 3, 64, 64]`` in [-1, 1]."""
        features: Tensor = self.embedding(self._levels(torch.nan_to_num(self._checked(images)))[-1])
        return features

    @torch.no_grad()
    def regions(self, images: Tensor) -> Tensor:
        """int64 ``[B, 64, 64]``: each pixel's index in :data:`~tide.scenes.render.REGIONS`."""
        return self(torch.nan_to_num(self._checked(images)))[1].argmax(1)

    @torch.no_grad()
    def read(self, images: Tensor) -> list[Verdict]:
        """Verdicts on a batch of images ``[B, 3, 64, 64]`` in [-1, 1]. An image with NaN or inf is wreckage."""
        images = self._checked(images)
        broken = ~images.isfinite().flatten(1).all(1)
        logits, _ = self(torch.nan_to_num(images))
        probabilities = {name: values.softmax(-1) for name, values in logits.items()}
        probabilities["class"][broken] = torch.tensor([float(name == NO_OBJECT) for name in HEADS["class"]]).to(images)
        best = {name: p.max(-1) for name, p in probabilities.items()}
        return [
            Verdict(
                {name: HEADS[name][int(b.indices[i])] for name, b in best.items()},
                {name: float(b.values[i]) for name, b in best.items()},
            )
            for i in range(len(images))
        ]

    def read_pictures(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """:meth:`read` of 64 x 64 pictures as a pipeline draws them."""
        return self.read(torch.stack([to_tensor(each, (each.height, each.width)) for each in pictures]))

    @torch.no_grad()
    def margins(self, images: Tensor, wanted: Sequence[Scene]) -> Tensor:
        """How clearly each image shows every attribute of the scene wanted of it, float32 ``[B]``.

        The smallest, over the attributes, of the logit of the wanted value minus the largest of the others: above 0 if
        :meth:`read` gives exactly the wanted values. ``-inf`` for an image with NaN or inf.
        """
        images = self._checked(images)
        logits, _ = self(torch.nan_to_num(images))
        margins = [_margins(values, [HEADS[name].index(s[name]) for s in wanted]) for name, values in logits.items()]
        broken = ~images.isfinite().flatten(1).all(1)
        return torch.stack(margins).amin(0).masked_fill(broken, -torch.inf).cpu()

    def save_pretrained(self, path: str | Path) -> None:
        """Writes ``config.json`` and, in half precision, ``model.safetensors`` to the folder ``path``."""
        folder, half = Path(path), {name: value.half() for name, value in self.state_dict().items()}
        described = json_writer({"width": self.width, "heads": HEADS})
        replace_files({folder / WEIGHTS: tensors_writer(half), folder / CONFIG: described})


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride=stride, padding=1), nn.GroupNorm(8, out), nn.SiLU())


def _margins(logits: Tensor, wanted: list[int]) -> Tensor:
    """``[B]``: the logit of each row's wanted value minus the largest other one."""
    is_wanted = F.one_hot(torch.tensor(wanted, device=logits.device), logits.shape[1]).bool()
    return logits[is_wanted] - logits.masked_fill(is_wanted, -torch.inf).amax(1)


class _Config(TypedDict):
    width: int
    heads: dict[str, list[str]]


def load_judge(path: str | Path | None = None) -> Judge:
    """The trained judge of the package, or the one saved at ``path``.

    Raises :class:`~tide.errors.TideError` if there is none, or if it is damaged or has other attributes than
    :data:`HEADS`.
    """
    folder = DATA / "judge" if path is None else Path(path)
    if not (folder / WEIGHTS).is_file():
        raise TideError(f"{folder} holds no judge: reinstall tide-sae, or run `python scripts/train_scenes.py judge`")
    config = read_json(folder / CONFIG, _Config)
    if config["heads"] != {name: list(values) for name, values in HEADS.items()}:
        raise TideError(f"{folder} holds a judge of other attributes; run `python scripts/train_scenes.py judge` again")
    tensors = read_tensors(folder / WEIGHTS, "the judge")
    width = config["width"]
    if width % 8 or not 0 < width <= WIDEST:
        raise TideError(
            f"{folder / CONFIG}: width is {width}, not a multiple of 8 up to {WIDEST}; copy the whole folder again"
        )
    with torch.device("meta"):
        like = Judge(width).half().state_dict()
    check_tensors(folder / WEIGHTS, tensors, like, remedy="copy the whole folder again")
    judge = Judge(width)
    judge.load_state_dict({name: value.float() for name, value in tensors.items()})
    return judge.eval()


def destroy(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Wrecks each image ``[B, 3, H, W]`` in one of six ways that a broken edit may produce.

    One way blends an image with others of the batch and so needs at least two images.
    """
    return torch.stack([_WRECKERS[rng.integers(len(_WRECKERS))](images, i, rng) for i in range(len(images))])


def _noised(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    """Low-frequency noise over most of the image, as a broken latent decodes to."""
    cells = int(rng.choice([4, 8, 16]))
    noise = torch.from_numpy(rng.normal(size=(1, 3, cells, cells)).astype(np.float32))
    blown_up = F.interpolate(noise, size=images.shape[-2:], mode="bilinear", align_corners=False)[0]
    share = float(rng.uniform(0.6, 1.0))
    return (images[i] * (1 - share) + blown_up * share).clamp(-1, 1)


def _blended(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    """Two or three scenes on top of each other."""
    others = (i + rng.integers(1, max(2, len(images)), size=int(rng.integers(2, 4)))) % len(images)
    return torch.stack([images[i], *(images[j] for j in others)]).mean(0)


def _shuffled(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    """Patches in a random order."""
    side = int(rng.choice([8, 16]))
    patches = F.unfold(images[i : i + 1], side, stride=side)[0]
    order = torch.from_numpy(rng.permutation(patches.shape[1]))
    return F.fold(patches[:, order][None], images.shape[-2:], side, stride=side)[0]


def _smeared(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    """Blurred until no shape is left."""
    side = int(rng.choice([2, 3, 4]))
    small = F.interpolate(images[i : i + 1], size=(side, side), mode="area")
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)[0]


def _emptied(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    """The object gone: every row is filled with its own border colour."""
    left, right = images[i][:, :, :2].mean(-1, keepdim=True), images[i][:, :, -2:].mean(-1, keepdim=True)
    ramp = torch.linspace(0, 1, images.shape[-1])
    noise = torch.from_numpy(rng.normal(scale=0.02, size=tuple(images.shape[1:])).astype(np.float32))
    return (left * (1 - ramp) + right * ramp + noise).clamp(-1, 1)


def _inverted(images: Tensor, i: int, rng: np.random.Generator) -> Tensor:
    """Channels swapped and contrast blown out of range."""
    order = [1, 2, 0] if rng.random() < 0.5 else [2, 0, 1]
    return (images[i][order] * -float(rng.uniform(1.0, 3.0))).clamp(-1, 1)


_WRECKERS = (_noised, _blended, _shuffled, _smeared, _emptied, _inverted)
