"""LPIPS: how different two images look (Zhang et al., arXiv 1801.03924)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.scorers.base import check_images, check_weights, provenance, require, sha256

#: Of each network of LPIPS, torchvision's model and the file of its weights. Eight digits of the file's SHA-256 are in
#: its name.
FILES = {
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "vgg": ("vgg16", "vgg16-397923af.pth"),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}
EXPECTED = f"one of torchvision's {', '.join(name for _, name in FILES.values())}"

#: The smallest side in pixels that every network has room for.
SMALLEST = 32


class LPIPSScorer:
    """LPIPS of torchmetrics, its backbone's weights from a local file.

    ``weights`` is torchvision's file of AlexNet ("alex", what papers on editing report), VGG-16 ("vgg") or SqueezeNet
    1.1 ("squeeze"), from ``https://download.pytorch.org/models/``; which one is told by its SHA-256. torchmetrics
    brings the linear layers on top.

    Raises :class:`~tide.errors.TideError` for a file that is missing or is none of these, and where torchmetrics or
    torchvision is missing.
    """

    def __init__(self, weights: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.weights = Path(weights)
        check_weights(self.weights, "features.0.weight", EXPECTED)
        self.sha256 = sha256(self.weights)
        self.net = _net_of(self.weights, self.sha256)
        model, name = FILES[self.net]
        torchvision = require("torchvision", "LPIPS")
        url = torchvision.models.get_model_weights(model).DEFAULT.url
        if not url.endswith(f"/{name}"):  # it would not find our file, and download its own
            raise TideError(f"this torchvision loads {url}, and LPIPS is known with {name}; install another version")
        metrics = require("torchmetrics.image.lpip", "LPIPS")
        with _hub_with(self.weights, name):
            # normalize=False: images are in [-1, 1].
            self.metric = metrics.LearnedPerceptualImagePatchSimilarity(self.net, reduction="none", normalize=False)
        self.metric.to(device)

    @torch.no_grad()
    def distance(self, images: Tensor, references: Tensor) -> Tensor:
        """LPIPS of each image and its reference: ``[B]``, 0 for equal ones.

        Both ``[B, 3, H, W]`` in [-1, 1], at least 32 pixels a side; they are not resized.
        """
        if images.shape != references.shape:
            raise TideError(
                f"images {list(images.shape)} and references {list(references.shape)} differ in shape; give pairs"
            )
        if min(images.shape[-2:]) < SMALLEST:
            raise TideError(f"images are {list(images.shape)}; LPIPS needs at least {SMALLEST} pixels a side")
        device = self.metric.device
        found = self.metric(check_images(images).to(device), check_images(references).to(device))
        self.metric.reset()  # it would keep every pair's value
        return found.reshape(-1)

    @property
    def provenance(self) -> dict[str, Any]:
        """As :class:`~tide.evaluation.scorers.Scorer` says."""
        return provenance(self, f"LPIPS {self.net}", self.weights, self.sha256, "torchmetrics", "torchvision")


def _net_of(path: Path, digest: str) -> str:
    for net, (_, name) in FILES.items():
        if digest.startswith(name.removesuffix(".pth").rpartition("-")[2]):
            return net
    raise TideError(f"{path} has SHA-256 {digest[:8]}..., that of none known; give {EXPECTED}")


@contextmanager
def _hub_with(weights: Path, name: str) -> Iterator[None]:
    """Within it, torch.hub's folder is a temporary one that holds ``weights`` as the checkpoint ``name``."""
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as hub:
        (Path(hub) / "checkpoints").mkdir()
        (Path(hub) / "checkpoints" / name).symlink_to(weights.resolve())
        torch.hub.set_dir(hub)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
