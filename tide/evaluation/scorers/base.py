"""What scorers share: their protocols, the checks of what they are given, and where a score came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.errors import TideError

EXTRA = 'pip install "tide-sae[scores]"'


class Scorer(Protocol):
    """Anything that scores. ``provenance``, fit for JSON, is for the file that holds the scores."""

    @property
    def provenance(self) -> dict[str, Any]:
        """The model's class, its weights (path and SHA-256) and the versions of the libraries that run it."""
        ...


class ImageEmbedder(Scorer, Protocol):
    def embed_images(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` in [-1, 1] to embeddings ``[B, e]``, not normalised."""
        ...


class TextEmbedder(Scorer, Protocol):
    def embed_texts(self, texts: list[str]) -> Tensor:
        """``B`` texts to embeddings ``[B, e]``, not normalised."""
        ...


class ImageTextScorer(ImageEmbedder, TextEmbedder, Protocol):
    """Embeds images and texts into one space."""

    def similarity(self, images: Tensor, texts: list[str]) -> Tensor:
        """Cosine of each image's embedding with that of its own text: ``[B]`` in [-1, 1].

        Raises :class:`~tide.errors.TideError` where there are not as many texts as images.
        """
        check_images(images)
        check_texts(texts)
        if len(images) != len(texts):
            raise TideError(f"{len(images)} images need as many texts, not {len(texts)}; repeat a text they share")
        return F.cosine_similarity(self.embed_images(images), self.embed_texts(texts), dim=1)


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
    reason = " ".join(str(error).split())
    return TideError(
        f"{user} needs {module}, which cannot be imported ({reason}); install the builds of torchvision and of the "
        f"rest that are made for torch {torch.__version__}: {EXTRA}"
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weights(path: Path, key: str, expected: str) -> None:
    """Raises unless ``path`` is a file of tensors, one of them named ``key``; ``expected`` says what should be there.

    The libraries read such files as pickles, which may run code. This reads tensors alone, and comes first.
    """
    if not path.is_file():
        raise TideError(f"{path} does not exist; put {expected} there (nothing is downloaded)")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many kinds
        raise TideError(f"{path} is not a readable file of weights ({type(error).__name__}); give {expected}") from None
    if not isinstance(weights, Mapping) or key not in weights:
        raise TideError(f"{path} holds no {key!r}; give {expected}")


def provenance(scorer: object, model: str, weights: Path | None, hashes: object, *libraries: str) -> dict[str, Any]:
    """What every scorer states: its class, its model's, the weights' path and SHA-256, versions of libraries."""
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
