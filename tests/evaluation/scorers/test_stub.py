"""What every scorer refuses, and the stub."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

import tide.evaluation
from tests.helpers.scorer_inputs import TEXTS, random_images
from tide.errors import TideError
from tide.evaluation.scorers import StubScorer, check_images


def test_importing_scorers_imports_no_library(without, monkeypatch):
    for name in ("torchmetrics", "torchvision", "transformers"):
        without(name)
    for module in [m for m in sys.modules if m.startswith("tide.evaluation.scorers")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(tide.evaluation, "scorers", None)  # so that the import below is undone
    assert importlib.import_module("tide.evaluation.scorers").StubScorer is not StubScorer


# -- what scorers are given -----------------------------------------------------------------------------------


def test_check_images_returns_float32():
    images = random_images().half()
    assert torch.equal(check_images(images), images.float())
    edge = torch.tensor([-1.0, 1.0]).expand(1, 3, 2, 2)
    assert torch.equal(check_images(edge), edge)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"images are \[3, 8, 8\]; give \[B, 3, H, W\], at least one"),
        (torch.zeros(2, 4, 8, 8), r"images are \[2, 4, 8, 8\]; give"),
        (torch.zeros(0, 3, 8, 8), r"images are \[0, 3, 8, 8\]; give"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "images are torch.uint8; give floating point in"),
        (torch.full((1, 3, 8, 8), 1.5), r"images reach from 1.5 to 1.5; clamp what was decoded to \[-1, 1\]"),
        (torch.full((1, 3, 8, 8), torch.nan), "images hold NaN or infinity; check what drew them"),
        (torch.full((1, 3, 8, 8), -torch.inf), "images hold NaN or infinity; check what drew them"),
    ],
    ids=["one image", "four channels", "none", "bytes", "out of range", "NaN", "infinity"],
)
def test_images_that_no_scorer_takes(images, message):
    for use in (check_images, StubScorer().embed_images, lambda x: StubScorer().similarity(x, ["a"] * len(x))):
        with pytest.raises(TideError, match=message):
            use(images)


def test_texts_that_no_scorer_takes():
    for texts in ("house", []):
        with pytest.raises(TideError, match=r"texts are a list of at least one; give \[text\] for a single one"):
            StubScorer().embed_texts(texts)
    with pytest.raises(TideError, match="3 images need as many texts, not 1; repeat a text they share"):
        StubScorer().similarity(random_images(), ["house"])


# -- the stub -------------------------------------------------------------------------------------------------


def test_stub():
    scorer, images = StubScorer(), random_images()
    embedded, texts = scorer.embed_images(images), scorer.embed_texts(TEXTS)
    assert embedded.shape == texts.shape == (3, 32)
    assert torch.equal(embedded, StubScorer().embed_images(images))
    assert torch.equal(texts, StubScorer().embed_texts(TEXTS))
    assert len({tuple(row.tolist()) for row in (*embedded, *texts)}) == 6
    # From a hash of the word that is the same in every process.
    assert float(scorer.embed_texts(["house"])[0, 0]) == pytest.approx(-0.747112, rel=1e-5)
    expected = torch.cosine_similarity(embedded, texts)
    torch.testing.assert_close(scorer.similarity(images, TEXTS), expected)
    assert scorer.distance(images, images).tolist() == [0, 0, 0]
    other = random_images(seed=1)
    assert scorer.distance(images, other)[1] == pytest.approx(float((images[1] - other[1]).square().mean()))
    assert scorer.provenance["model"] == "none: a stub"
    assert scorer.provenance["versions"] == {"torch": torch.__version__}
