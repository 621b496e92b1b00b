"""LPIPS: how different two images look (Zhang et al., arXiv 1801.03924)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.scorers.base import as_pickle, check_images, provenance, read_weights, require
from tide.files import file_digest
from tide.messages import one_line

#: For each network of LPIPS: torchvision's model, the file of its weights, and a tensor that only it has.
FILES = {
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth", "features.10.weight"),
    "vgg": ("vgg16", "vgg16-397923af.pth", "features.28.weight"),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", "features.3.squeeze.weight"),
}
EXPECTED = f"one of torchvision's {', '.join(name for _, name, _ in FILES.values())} as safetensors"

#: The smallest side, in pixels, that every network accepts.
SMALLEST = 32


class LPIPSScorer:
    """LPIPS of torchmetrics, its backbone's weights from a local file.

    ``weights`` is a safetensors file of torchvision's AlexNet ("alex", what papers on editing report), VGG-16 ("vgg")
    or SqueezeNet 1.1 ("squeeze"), from ``https://download.pytorch.org/models/``, where they are pickles: the error for
    one says how to convert it. The names of its tensors determine the network; whether its values are those that
    torchvision publishes is not known, so :attr:`provenance` states the file's SHA-256. torchmetrics brings the linear
    layers on top.

    ``device`` is where it computes.

    Raises :class:`~tide.errors.TideError` for a file that is missing or is none of these, and where torchmetrics or
    torchvision is missing.
    """

    def __init__(self, weights: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.weights = Path(weights)
        tensors = read_weights(self.weights, "features.0.weight", EXPECTED)
        self.sha256 = file_digest(self.weights)
        self.net = _net_of(self.weights, tensors)
        torchvision = require("torchvision", "LPIPS")
        url = torchvision.models.get_model_weights(FILES[self.net][0]).DEFAULT.url
        metrics = require("torchmetrics.image.lpip", "LPIPS")
        with _hub_with(tensors, url.rpartition("/")[2]):
            try:
                # normalize=False: images are in [-1, 1].
                self.metric = metrics.LearnedPerceptualImagePatchSimilarity(self.net, reduction="none", normalize=False)
            except RuntimeError as error:  # tensors of other names or shapes
                reason = one_line(error)
                raise TideError(f"{self.weights} does not fit LPIPS {self.net} ({reason}); give {EXPECTED}") from error
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


def _net_of(path: Path, tensors: dict[str, Tensor]) -> str:
    for net, (_, _, only) in FILES.items():
        if only in tensors:
            return net
    raise TideError(f"{path} holds weights of none of {', '.join(FILES)}; give {EXPECTED}")


@contextmanager
def _hub_with(tensors: dict[str, Tensor], name: str) -> Iterator[None]:
    """Within it, torch.hub's folder is a temporary one that holds ``tensors`` as the checkpoint ``name``."""
    before = torch.hub.get_dir()
    with as_pickle(tensors, f"checkpoints/{name}") as path:
        torch.hub.set_dir(path.parent.parent)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
