"""FID: how far apart two sets of images are (Heusel et al., arXiv 1706.08500)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tide.devices import has_float64
from tide.errors import TideError
from tide.evaluation.scorers.base import as_pickle, check_images, provenance, read_weights, require, to_pixels
from tide.files import file_digest
from tide.messages import one_line

EXPECTED = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth as safetensors"


class FIDScorer:
    """Fréchet distance between Gaussians fitted to the features of real and of fake images, by torchmetrics.

    ``|m_r - m_f|^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2))`` with means m and unbiased covariances C, which are
    summed in float64 as images come.

    ``features`` is the safetensors file of Inception v3's weights, for the FID of the literature (2048 features of
    images resized to 299 x 299). ``https://github.com/toshas/torch-fidelity/releases`` has them as a pickle; the error
    for it says how to convert it. Or it is a module of your own, in evaluation mode, from images ``[B, 3, H, W]`` in
    [-1, 1] to ``[B, d]``, with ``d`` in its attribute ``num_features``; it is moved to ``device``, or to the CPU
    if that has no float64. FID is biased upwards for few images: compare only sets of one size; papers take 10 000
    images or more.

    Raises :class:`~tide.errors.TideError` for a file that is missing or holds other weights, a module without
    ``num_features``, and where torchmetrics or torch-fidelity is missing.
    """

    def __init__(self, features: str | Path | nn.Module, *, device: str | torch.device = "cpu") -> None:
        self.weights = None if isinstance(features, nn.Module) else Path(features)
        if self.weights is None and not hasattr(features, "num_features"):
            raise TideError(f"{type(features).__name__} has no num_features; set it to the width of what it returns")
        fid = require("torchmetrics.image.fid", "FID").FrechetInceptionDistance
        if self.weights is None:
            self.metric = fid(features)
        else:
            tensors = read_weights(self.weights, "Conv2d_1a_3x3.conv.weight", EXPECTED)
            require("torch_fidelity", "FID")
            try:
                with as_pickle(tensors, "inception.pth") as path:
                    self.metric = fid(2048, feature_extractor_weights_path=str(path))
            except RuntimeError as error:  # tensors of other names or shapes
                reason = one_line(error)
                raise TideError(f"{self.weights} does not fit Inception v3 ({reason}); give {EXPECTED}") from error
        # Its sums are float64, which some devices lack.
        self.metric.to(device if has_float64(torch.device(device)) else "cpu")

    def reset(self) -> None:
        """Forgets all images."""
        self.metric.reset()

    @torch.no_grad()
    def update(self, images: Tensor, *, real: bool) -> None:
        """Adds ``images [B, 3, H, W]`` in [-1, 1] to the real or to the fake ones."""
        images = check_images(images).to(self.metric.device)
        # Inception takes 8-bit pixels.
        self.metric.update(images if self.weights is None else to_pixels(images), real=real)

    def compute(self) -> float:
        """The distance between all real and all fake images so far, at least 0 but for rounding."""
        real, fake = (int(getattr(self.metric, f"{kind}_features_num_samples")) for kind in ("real", "fake"))
        if min(real, fake) < 2:
            raise TideError(f"FID needs at least 2 real and 2 fake images, not {real} and {fake}; update with more")
        return float(self.metric.compute())

    @property
    def provenance(self) -> dict[str, Any]:
        """As :class:`~tide.evaluation.scorers.Scorer` says; a module of your own has no weights to name."""
        digest = None if self.weights is None else file_digest(self.weights)
        libraries = ("torchmetrics",) if self.weights is None else ("torchmetrics", "torch-fidelity")
        return provenance(self, type(self.metric.inception).__name__, self.weights, digest, *libraries)
