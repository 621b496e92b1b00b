"""FID against its closed form in float64."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.helpers.scorer_inputs import NEEDS_TORCHVISION, random_images
from tide.errors import TideError
from tide.evaluation.scorers import FIDScorer

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is in the extras dev and scores")


class Features(nn.Module):
    """Six features of an image: a fixed projection of its 2 x 2 average, bent so that their means differ too."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(12, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) @ self.weight).exp()


def frechet(real: torch.Tensor, fake: torch.Tensor) -> float:
    """|m_r - m_f|^2 + tr(C_r + C_f - 2 (C_r^(1/2) C_f C_r^(1/2))^(1/2)), in float64, by symmetric square roots."""

    def root(c: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(c)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    real, fake = real.double(), fake.double()
    c_real, c_fake = real.T.cov(), fake.T.cov()
    half = root(c_real)
    between = (real.mean(0) - fake.mean(0)).square().sum()
    return float(between + (c_real + c_fake - 2 * root(half @ c_fake @ half)).trace())


def two_sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Unequal numbers, means and spreads, on few pixels so that averages vary."""
    return random_images(40, 4), 0.6 * random_images(31, 4, seed=1) + 0.3


@pytest.mark.parametrize("part", [40, 7, 1], ids=["at once", "in parts", "one by one"])
def test_fid_is_the_closed_form(part):
    real, fake = two_sets()
    scorer = FIDScorer(Features())
    for i, images in enumerate((*real.split(part), *fake.split(part))):
        scorer.update(images, real=i < len(real.split(part)))
    expected = frechet(Features()(real), Features()(fake))
    assert expected > 0.1
    assert scorer.compute() == pytest.approx(expected, rel=1e-5)


def test_fid_of_equal_sets_is_zero():
    real, _ = two_sets()
    scorer = FIDScorer(Features())
    scorer.update(real, real=True)
    scorer.update(real.flip(0), real=False)
    assert scorer.compute() == pytest.approx(0, abs=1e-5)


def test_fid_of_too_few_images():
    scorer = FIDScorer(Features())
    scorer.update(random_images(5, 4), real=True)
    for n in (0, 1):
        with pytest.raises(TideError) as caught:
            scorer.compute()
        assert str(caught.value) == f"FID needs at least 2 real and 2 fake images, not 5 and {n}; update with more"
        scorer.update(random_images(1, 4, seed=n), real=False)
    assert scorer.compute() > 0


def test_fid_of_images_that_do_not_fit():
    with pytest.raises(TideError, match="images reach from"):
        FIDScorer(Features()).update(torch.full((2, 3, 4, 4), 255.0), real=True)


def test_fid_of_a_module_that_does_not_tell_its_width():
    with pytest.raises(TideError, match="Flatten has no num_features; set it to the width of what it returns"):
        FIDScorer(nn.Flatten())


def test_fid_provenance():
    stated = FIDScorer(Features()).provenance
    assert (stated["scorer"], stated["model"], stated["weights"]) == ("FIDScorer", "Features", None)
    assert stated["versions"]["torchmetrics"] == torchmetrics.__version__


def test_fid_files_that_cannot_serve(tmp_path):
    expected = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth as safetensors"
    path = tmp_path / "inception.safetensors"
    with pytest.raises(TideError, match=f"{path} does not exist; put {expected} there .nothing is downloaded"):
        FIDScorer(path)
    other = tmp_path / "alexnet.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, other)
    with pytest.raises(TideError, match=f"{other} holds no 'Conv2d_1a_3x3.conv.weight'; give {expected}"):
        FIDScorer(other)


def test_fid_without_its_libraries(tmp_path, without):
    path = tmp_path / "inception.safetensors"
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, path)
    without("torch_fidelity")
    with pytest.raises(TideError) as caught:
        FIDScorer(path)
    assert str(caught.value) == 'FID needs torch_fidelity, which is not installed: pip install "tide-sae[scores]"'
    without("torchmetrics")
    with pytest.raises(TideError) as caught:
        FIDScorer(Features())
    assert str(caught.value) == 'FID needs torchmetrics, which is not installed: pip install "tide-sae[scores]"'


def test_fid_of_the_real_inception(tmp_path, monkeypatch):
    """Random weights."""
    pytest.importorskip("torchvision", reason=f"torch-fidelity {NEEDS_TORCHVISION}")
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is in the extra scores")
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        weights = inception.FeatureExtractorInceptionV3("x", ["2048"]).state_dict()
    save_file(weights, tmp_path / "inception.safetensors")
    scorer = FIDScorer(tmp_path / "inception.safetensors")
    for i, images in enumerate((random_images(3), random_images(3, seed=1) * 0.5)):
        scorer.update(images, real=i == 0)
    assert scorer.compute() > 0
    assert scorer.provenance["model"] == "NoTrainInceptionV3"
    del weights["fc.bias"]
    save_file(weights, tmp_path / "inception.safetensors")
    with pytest.raises(TideError, match=r"inception.safetensors does not fit Inception v3 \(.*fc.bias"):
        FIDScorer(tmp_path / "inception.safetensors")
