"""What a guard is made from, and what none is made from."""

from __future__ import annotations

import pytest
import torch

from tide.errors import TideError
from tide.guards.making import Examples, check_shown, check_told
from tide.interpretation import Annotated, FittedDetector


def images(*shown: bool) -> Annotated:
    return Annotated(torch.tensor([500.0]), torch.zeros(1, len(shown), 2, 4), labels={"house": torch.tensor(shown)})


def test_held_out_images_show_the_concept_or_not():
    """Without both there is no AUROC, and nothing would have validated the guard."""
    fit = images(True, False)
    check_shown(Examples(fit, images(False, True), []), "house")
    with pytest.raises(TideError, match="none of the held-out images shows 'house'"):
        check_shown(Examples(fit, images(False, False), []), "house")
    with pytest.raises(TideError, match="every one of the held-out images shows 'house'"):
        check_shown(Examples(fit, images(True, True), []), "house")
    with pytest.raises(TideError, match="none of the held-out images shows 'tree'"):
        check_shown(Examples(fit, images(True, False), []), "tree")


def test_a_concept_is_told_by_its_figure():
    found = FittedDetector("house", None, [0.9, 0.8])
    check_told(found)
    for auroc in (0.84, float("nan")):
        with pytest.raises(TideError, match=r"no latents of this SAE tell 'house': AUROC .*; the nearest is 'tree'"):
            check_told(FittedDetector("house", None, [auroc], ("tree", 0.6)))
