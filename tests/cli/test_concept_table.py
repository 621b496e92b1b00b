"""What is printed of concepts."""

from __future__ import annotations

import copy
from typing import Any

from tide.cli.concept_table import concepts_sentence, concepts_text

BESIDE = {"neuron": {"auroc": 0.62}, "random": {"auroc": 0.6}}
WORD = {"images": 60, "without": 64, "latent": 12, "auroc": 0.93, "interval": [0.84, 0.97], "remark": "", **BESIDE}
CHANCE = {**WORD, "latent": 7, "auroc": 0.53, "interval": [0.38, 0.67], "remark": "near chance"}
FEW = {
    **WORD, "images": 5, "auroc": None, "interval": None, "remark": "too few images to score",
    "neuron": {"auroc": None}, "random": {"auroc": None},
}  # fmt: skip
CAPTIONS: dict[str, Any] = {
    "concepts": {"seven": CHANCE, "few": FEW, "blue": WORD},
    "images": {"used": 124, "of": "held-out", "read": "400 of the 600 images of digits/"},
}
SCENE = {"latent": 3, "auroc": 0.91, "neuron_auroc": 0.9, "iou": 0.4}
SCENES: dict[str, Any] = {
    "concepts": {"near": {**SCENE, "auroc": 0.6}, "roof": SCENE, "trunk": {**SCENE, "auroc": None, "iou": None}}
}


def test_the_table_of_captions():
    """The clearest first; what is not known is a dash."""
    table, meaning = concepts_text(CAPTIONS).split("\n\n")
    assert table.splitlines() == [
        "concept  with  without  latent  auroc       95 %  neuron  random  remark",
        "blue       60       64      12   0.93  0.84-0.97    0.62    0.60",
        "seven      60       64       7   0.53  0.38-0.67    0.62    0.60  near chance",
        "few         5       64      12      -          -       -       -  too few images to score",
    ]
    assert meaning.startswith(
        "Read: 400 of the 600 images of digits/; used: 124 held-out images.\nwith, without: images"
    )
    assert "auroc, neuron and random are of the other half; of a word with too few images" in meaning
    assert "all figures" not in meaning
    assert max(map(len, meaning.splitlines())) <= 120


def test_training_images_are_called_so():
    found = copy.deepcopy(CAPTIONS)
    found["images"]["of"] = "training"
    assert "used: 124 training images." in concepts_text(found)
    assert "held-out" not in concepts_text(found)


def test_chance_is_not_praised():
    assert concepts_sentence(CAPTIONS, 6) == (
        "1 of 3 concepts on block 6 has a latent above chance: blue (latent 12, 0.93); not seven, few"
    )
    alone = {**CAPTIONS, "concepts": {"seven": CHANCE}}
    assert concepts_sentence(alone, 6) == "0 of 1 concept on block 6 have a latent above chance; not seven"


def test_the_table_of_scenes():
    table, meaning = concepts_text(SCENES).split("\n\n")
    assert table.splitlines() == [
        "concept  latent  auroc  neuron   iou  remark",
        "roof          3   0.91    0.90  0.40",
        "near          3   0.60    0.90  0.40  neuron as good",
        "trunk         3      -    0.90     -",
    ]
    assert meaning.startswith("Latents were chosen on development scenes, all figures are of test scenes")
    assert concepts_sentence(SCENES, 6) == (
        "1 of 3 concepts on block 6 has a latent of AUROC 0.85 or more: roof (latent 3, 0.91)"
    )
