"""Fig. 5: what is read off the curves, on curves made for it."""

from __future__ import annotations

import numpy as np
import pytest

from tide.scenes.scene import ATTRIBUTES
from tide.studies import fig5


def fig5_result(break_at: int, images: int = 4, steps: int = 20) -> dict:
    """Cosines that dip at the pair of steps before ``break_at``; contours that follow."""
    curve = np.full(steps - 1, 0.97)
    curve[break_at - 1] = 0.9
    return {
        "timesteps": list(range(steps)),
        "latents": {"cosine": np.repeat(curve[:, None], images, 1).tolist()},
        "target": {"cosine": [[0.99] * images] + [[0.5] * images] * (steps - 1)},
        "contour step": [break_at, break_at + 1, break_at, break_at + 9],
        "settled": {name: [i, i, i + 1, i] for i, name in enumerate(ATTRIBUTES)},
    }


def test_the_sentence_of_fig5_is_of_its_numbers():
    results = [fig5_result(8), fig5_result(8)]
    changes = [fig5.abrupt_of(r["latents"]["cosine"]) for r in results]
    assert [change.step for change in changes] == [8, 8]
    assert all(change.strength == pytest.approx(1.0) for change in changes)
    assert all(change.each == [8] * 4 for change in changes)
    assert fig5.verdict_of(changes, results) == (
        "The cosine of consecutive latents dips before step 8 of 20 (by 100% of its range, in 2 of 2 seeds), the "
        "predicted image's contours have half risen at step 8.5, within 2 steps of its own dip in 75% of the images; "
        "the judge's reading settles from class (median step 0) to orientation (7), and source and target drift from a "
        "cosine of 0.990 at the first step to 0.500 at the last."
    )
    none = fig5.abrupt_of([[0.9, 0.8], [0.95, 0.85], [0.97, 0.9]])
    assert (none.step, none.each) == (None, [None, None])
    assert fig5.verdict_of([fig5.Abrupt(None, 0.0, [None] * 4)] * 2, results).startswith(
        "The cosine of consecutive latents has no dip, the predicted image's contours"
    )
