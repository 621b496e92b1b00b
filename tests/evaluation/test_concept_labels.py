"""Concepts that cannot be probed are refused in one line."""

from __future__ import annotations

import pytest
import torch

from tide.errors import TideError
from tide.evaluation.concept_labels import label_images, label_tokens


def test_no_concept_with_enough_on_both_sides():
    captions = ["a house"] * 20
    with pytest.raises(TideError, match=r"^no concept is shown by 8 images or more, and not shown by as many, on eit"):
        label_images((captions, captions), ["house", "tree"])


def test_an_unknown_concept_of_scenes():
    masks = {"red": torch.zeros(2, 4, dtype=torch.bool)}
    places = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(TideError, match=r"^scenes have no concept 'whale'; they have red$"):
        label_tokens((masks, masks), (places, places), {"red": "colour"}, ["whale"])
