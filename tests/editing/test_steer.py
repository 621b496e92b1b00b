"""Raw edits of each image of a batch."""

from __future__ import annotations

import re

import pytest
import torch

from tide.editing import Place, Steer, SteerPerImage, SteerTowards
from tide.errors import TideError

NOW = torch.tensor([500.0])
#: Three tokens: two of image 1 and, between them, one of image 0.
PLACE = Place(500.0, token=torch.tensor([0, 1, 2]), image=torch.tensor([1, 0, 1]), n_tokens=3)
X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def test_each_image_has_its_edit_and_each_row_its_place():
    maps = torch.tensor([[[10.0, 0.0], [20.0, 0.0], [30.0, 0.0]]])
    edits = SteerPerImage((SteerTowards(NOW, torch.zeros(1, 2)), Steer(NOW, maps)))
    assert edits.activations(X, PLACE).tolist() == [[11, 2], [0, 0], [35, 6]]
    assert X.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_half_precision_is_kept():
    edits = SteerPerImage((Steer(NOW, torch.ones(1, 2)),) * 2)
    assert edits.activations(X.half(), PLACE).dtype == torch.float16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SteerPerImage(()), "there is no edit; give one an image"),
        (
            lambda: SteerPerImage((Steer(NOW, torch.ones(1, 2)), Steer(NOW, torch.ones(1, 3)))),
            "the edits are of widths 2 and 3; take all from one block",
        ),
        (
            lambda: SteerPerImage((Steer(NOW, torch.ones(1, 2)),)).activations(X, PLACE),
            "the batch has more images than the 1 edits given; give one an image",
        ),
        (
            lambda: SteerPerImage((Steer(NOW, torch.ones(1, 3)),)).check(2),
            "the direction has width 3 and the transformer 2",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(TideError, match=f"^{re.escape(message)}"):
        make()
