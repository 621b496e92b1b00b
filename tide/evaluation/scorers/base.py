"""What scorers share: their protocols, checks of their input, and the provenance of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.errors import TideError
from tide.files import read_tensors
from tide.files.tensors import FLOATS, PICKLE, is_finite, what_is_wrong
from tide.messages import one_line

EXTRA = 'pip install "tide-sae[scores]"'


class Scorer(Protocol):
    """Anything that scores. ``provenance``, fit for JSON, is for the file that holds the scores."""

    @property
    def provenance(self) -> dict[str, Any]:
        """The model's class, its weights (path and SHA-256) and the versions of the libraries that run it."""
        ...


class ImageEmbedder(Scorer, Protocol):
    """Embeds images, for distances between sets of them."""

    def embed_images(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` in [-1, 1] to embeddings ``[B, e]``, not normalised."""
        ...


class TextEmbedder(Scorer, Protocol):
    """Embeds texts."""

    def embed_texts(self, texts: list[str]) -> Tensor:
        """``B`` texts to embeddings ``[B, e]``, not normalised."""
        ...


class ImageTextScorer(ImageEmbedder, TextEmbedder, Protocol):
    """Embeds images and texts into one space."""

    def similarity(self, images: Tensor, texts: list[str]) -> Tensor:
        """Cosine of each image's embedding with that of its own text: ``[B]`` in [-1, 1].

        Raises :class:`~tide.errors.TideError` unless there are as many texts as images.
        """
        check_images(images)
        check_texts(texts)
        if len(images) != len(texts):
            raise TideError(f"{len(images)} images need as many texts, not {len(texts)}; repeat a text they share")
        return F.cosine_similarity(self.embed_images(images), self.embed_texts(texts), dim=1)


class Distance(Scorer, Protocol):
    """As :class:`~tide.evaluation.scorers.LPIPSScorer`."""

    def distance(self, images: Tensor, references: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] each to ``[B]``."""
        ...


class SetDistance(Scorer, Protocol):
    """As :class:`~tide.evaluation.scorers.FIDScorer`."""

    def reset(self) -> None:
        """Forgets all images."""
        ...

    def update(self, images: Tensor, *, real: bool) -> None:
        """Adds ``[B, 3, H, W]`` in [-1, 1] to the real or to the fake images."""
        ...

    def compute(self) -> float:
        """The distance between all real and all fake images so far."""
        ...


class Reading(Protocol):
    """What is read off one image: attribute -> value. Not ``valid``: the image shows nothing that can be read."""

    @property
    def attributes(self) -> Mapping[str, str]: ...

    @property
    def valid(self) -> bool: ...


class AttributeReader(ImageEmbedder, Protocol):
    """Embeds images and reads attributes off them."""

    def read(self, images: Tensor) -> Sequence[Reading]:
        """``[B, 3, H, W]`` in [-1, 1] to ``B`` readings of the same attributes."""
        ...


def check_images(images: Tensor) -> Tensor:
    """``images`` in float32 if they are ``[B, 3, H, W]``, floating, finite and within [-1, 1]; else raises
    :class:`~tide.errors.TideError`."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise TideError(f"images are {list(images.shape)}; give [B, 3, H, W], at least one of them")
    if not images.is_floating_point():
        raise TideError(f"images are {images.dtype}; give floating point in [-1, 1] (8-bit pixels / 127.5 - 1)")
    images = images.float()
    if not images.isfinite().all():
        raise TideError("images hold NaN or infinity; check what drew them")
    low, high = images.aminmax()
    if low < -1 or high > 1:
        raise TideError(f"images reach from {low:.3g} to {high:.3g}; clamp what was decoded to [-1, 1]")
    return images


def check_texts(texts: list[str]) -> None:
    if isinstance(texts, str) or not texts:
        raise TideError("texts are a list of at least one; give [text] for a single one")


def to_pixels(images: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded as images are when they are saved."""
    return ((images + 1) * 127.5).round().byte()


def require(module: str, user: str) -> Any:
    """Imports a module that ``user`` needs; one that is missing or broken is a one-line error with the remedy."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise _broken(module, user, error) from error
        raise TideError(f"{user} needs {error.name}, which is not installed: {EXTRA}") from None
    except Exception as error:  # torchvision made for another torch raises RuntimeError when it is imported
        raise _broken(module, user, error) from error


def _broken(module: str, user: str, error: Exception) -> TideError:
    reason = one_line(error)
    return TideError(
        f"{user} needs {module}, which cannot be imported ({reason}); install the builds of torchvision and of the "
        f"rest that are made for torch {torch.__version__}: {EXTRA}"
    )


def read_weights(path: Path, key: str, expected: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, one of them named ``key``; ``expected`` says what should be there.

    Such weights are published as pickles, which may run code when they are read; the message of the
    :class:`~tide.errors.TideError` for one says how to convert it.
    """
    if not path.is_file():
        raise TideError(f"{path} does not exist; put {expected} there (nothing is downloaded)")
    if what_is_wrong(path) == PICKLE:
        raise TideError(f"{path} is {PICKLE}; convert it once: {_conversion(path)}")
    tensors = read_tensors(path)
    if key not in tensors:
        raise TideError(f"{path} holds no {key!r}; give {expected}")
    if foreign := [name for name, value in tensors.items() if value.is_floating_point() and value.dtype not in FLOATS]:
        raise TideError(f"{path}: {foreign[0]} is {tensors[foreign[0]].dtype}; give {expected}")
    if broken := [name for name, value in tensors.items() if not is_finite(value)]:
        raise TideError(f"{path}: {broken[0]} holds NaN or inf; give {expected}")
    return tensors


def _conversion(path: Path) -> str:
    """The command that reads only tensors out of a pickle and writes them as safetensors."""
    loaded = f"torch.load({str(path)!r}, 'cpu', weights_only=True)"
    code = f"import torch, safetensors.torch as s; s.save_file({loaded}, {str(path.with_suffix('.safetensors'))!r})"
    return f'python -c "{code}"'


@contextmanager
def as_pickle(tensors: dict[str, Tensor], name: str) -> Iterator[Path]:
    """A file ``name`` in a folder of its own, for a library that reads only torch's pickles; it is written here."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        torch.save(tensors, path)
        yield path


def provenance(scorer: object, model: str, weights: Path | None, hashes: object, *libraries: str) -> dict[str, Any]:
    """What every scorer states: its class, the class of its model, path and SHA-256 of the weights, and versions."""
    return {
        "scorer": type(scorer).__name__,
        "model": model,
        "weights": None if weights is None else str(weights.resolve()),
        "sha256": hashes,
        "versions": {name: _version(name) for name in ("torch", *libraries)},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
