"""Fig. 1: what is read off the numbers, on numbers made for it."""

from __future__ import annotations

import numpy as np
import torch

from tide.studies import fig1


def concept(level: str, latent: float, neuron: float, **more: float) -> dict:
    return {
        "level": level,
        "auroc": latent,
        "neuron_auroc": neuron,
        "recipe_auroc": 0.8,
        "recipe_literal_auroc": 0.4,
        "recipe_precision": 0.5,
        **more,
    }


def test_the_sentence_of_fig1_is_of_its_numbers():
    """Concepts without an object of their own have no figure among the objects' tokens, and do not count there."""
    scores = {"latents": {"mean": 0.7}, "neurons": {"mean": 0.6}}
    within = {"within_auroc": 0.75, "within_neuron_auroc": 0.65}
    results = [
        {
            "concepts": {"red": concept("colour", 0.9, 0.8, **within), "shadow": concept("3d", latent, 0.95)},
            "levels": {
                "colour": {"auroc": 0.9, "neuron_auroc": 0.8},
                "3d": {"auroc": latent, "neuron_auroc": 0.95},
            },
            "monosemanticity": scores,
        }
        for latent in (0.9, 0.7)
    ]
    assert fig1.verdict_of(results) == (
        "Over 2 concepts the best latent's AUROC on held-out scenes is 0.850 on average and the best raw neuron's "
        "0.875 (latents ahead in 1 of 2 seeds, on the levels colour); among the objects' own tokens 0.750 against "
        "0.650; the paper's pooled latents reach 0.400, minus those of all images 0.800, and 50% of their most "
        "similar tokens lie in the mask; monosemanticity is 0.700 for latents and 0.600 for neurons."
    )


def test_the_most_similar_tokens_are_framed():
    score = torch.arange(64.0).view(8, 8)
    framed = fig1.marked(np.zeros((64, 64, 3), np.uint8), score)
    white = (framed == 255).all(-1)
    assert white.sum() == fig1.MARKED * (4 * 8 - 4)
    assert not white[:56].any()  # the highest eight are the last row
    assert white[56].all()
    few = fig1.marked(np.zeros((64, 64, 3), np.uint8), (score - 60).clamp(min=0))
    assert (few == 255).all(-1).sum() == 3 * (4 * 8 - 4)  # what is zero is no more similar than the rest
