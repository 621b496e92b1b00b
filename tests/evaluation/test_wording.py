"""What is said of an evaluation's figures."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tide.evaluation import evaluation_sentence, evaluation_text

FIT = {"mse_normalised": 0.031, "cosine": 0.984, "explained_variance": 0.969, "tokens": 51200.0}
BESIDE = {"loss": 0.373, "ratio": 2.119, "recovered": 0.855}
FIGURES: dict[str, Any] = {
    "images": {"fit": 30, "measured": 31, "loss": 8, "of": "held-out", "read": "61 of the 600 images of photos/"},
    "sae": {"kind": "TIDE", "d_model": 128, "n_latents": 2048, "k": 16, "block": 6},
    "models": {
        "tide": {**FIT, "l0": 16.0, "dead": 0.12, "timestep": {"900-1000": FIT, "0-100": FIT}},
        "pca_k": {**FIT, "rank": 16},
        "pca_k/4": {**FIT, "rank": 4},
        "mean": {**FIT, "rank": 0},
    },
    "diffusion_loss": {
        "clean": 0.176, "reconstructed": 0.373, "ablated": 1.535, "ratio": 2.119, "recovered": 0.855, "worst": "999",
        "by_timestep": {
            "999": {"clean": 0.0011, "reconstructed": 0.11, "ablated": 0.9, "ratio": 100.0, "recovered": 0.8788},
            "1": {"clean": 0.9, "reconstructed": 0.91, "ablated": 2.0, "ratio": 1.0111, "recovered": 0.99},
        },
        "variants": {name: BESIDE for name in ("tide", "pca_k", "pca_k/4", "mean")},
    },
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    """The figures with other losses."""
    figures = copy.deepcopy(FIGURES)
    figures["diffusion_loss"] |= changes
    return figures


def test_a_sentence_says_what_it_costs_and_where():
    assert evaluation_sentence(FIGURES) == (
        "On 31 held-out images the TIDE explains 96.9% of the variance (PCA of rank 16: 96.9%). Its reconstruction in "
        "place adds 111.9% to the diffusion loss: 0.3730 against 0.1760 clean, ratio 2.12, at worst 100.00 at timestep "
        "999; of what zeroing the block adds, 85.5% is recovered"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recovered": None}, "at timestep 999; no recovered share can be told from zeroing the block (1.535)"),
        ({"ratio": 0.97, "reconstructed": 0.171}, "takes 3.0% off the diffusion loss: 0.1710 against 0.1760 clean"),
        ({"ratio": None, "reconstructed": None}, "in place the diffusion loss has no ratio to the clean 0.1760"),
    ],
)
def test_a_sentence_without_a_share(changes, says):
    assert says in evaluation_sentence(changed(**changes))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("held-out", "On 31 held-out images the"),
        ("training", "On 31 training images the"),
        ("unrecorded", "On 31 images (the checkpoint does not record what it was trained on) the"),
    ],
)
def test_images_are_called_what_they_are(kind, says):
    figures = {**FIGURES, "images": {**FIGURES["images"], "of": kind}}
    assert evaluation_sentence(figures).startswith(says)
    assert ("held-out" in evaluation_text(figures) + evaluation_sentence(figures)) == (kind == "held-out")


def test_the_tables():
    _, models, losses, _ = evaluation_text(FIGURES).split("\n\n")
    assert models.splitlines()[1].split() == (
        ["TIDE", "0.0310", "0.9840", "0.9690", "16.0", "12.0%", "0.3730", "2.12", "85.5%"]
    )
    assert [line.split() for line in models.splitlines()[-2:]] == [["clean", "0.1760"], ["zeroed", "1.535", "8.72"]]
    assert [line.split() for line in losses.splitlines()] == [
        ["diffusion", "loss", "clean", "TIDE", "zeroed", "ratio", "recovered"],
        ["t", "999", "0.001100", "0.1100", "0.9000", "100.00", "87.9%", "<", "worst"],
        ["t", "1", "0.9000", "0.9100", "2.000", "1.01", "99.0%"],
    ]


def test_what_is_not_known_is_a_dash():
    """And the table says why a share is missing."""
    beside = {"loss": None, "ratio": None, "recovered": None}
    text = evaluation_text(changed(variants=dict.fromkeys(("tide", "pca_k", "pca_k/4", "mean"), beside), ablated=None))
    assert text.splitlines()[5].split()[-3:] == ["-", "-", "-"]
    assert text.splitlines()[10].split() == ["zeroed", "-", "-"]
    assert text.endswith("or the loss is below the clean one; read the ratio.")
    assert "None" not in text


@pytest.mark.parametrize(
    ("sae", "tide", "says"),
    [
        ({}, {}, None),
        ({"k": 128}, {}, "PCA k has all 128 components and reproduces every activation; compare with PCA k/4."),
        ({}, {"l0": 102.0}, "l0: 102.0 latents a token for 128 channels are hardly sparse; train with a smaller k."),
        ({}, {"tokens": 128.0}, "dead: 128 tokens are few for 2048 latents, so rare ones count as dead; give more"),
    ],
)
def test_figures_that_mislead_are_explained(sae, tide, says):
    figures = copy.deepcopy(FIGURES)
    figures["sae"] |= sae
    figures["models"]["tide"] |= tide
    text = evaluation_text(figures)
    assert len(text.split("\n\n")) == (4 if says is None else 5)
    assert says is None or says in text.split("\n\n")[-1]
