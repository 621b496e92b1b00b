"""When a picture takes shape, on pictures whose shape is known."""

from __future__ import annotations

import pytest
import torch

from tide.scenes import Judge, images_of
from tide.scenes.scene import ATTRIBUTES, scenes
from tide.studies.emergence import contour_likeness, contours, emergence, half_risen

FINAL = images_of(list(scenes("test", 3, seed=1)))


def test_contours_are_where_the_brightness_jumps():
    image = torch.zeros(3, 8, 8)
    image[:, :, 4:] = 0.6
    found = contours(image)
    assert found.shape == (7, 7)
    assert found[:, 3] == pytest.approx([0.6] * 7)
    found[:, 3] = 0
    assert not found.any()


def test_likeness_grows_as_the_picture_comes_out_of_the_noise():
    noise = torch.randn(FINAL.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.stack([(1 - share) * noise + share * FINAL for share in (0.0, 0.5, 0.9, 1.0)])
    likeness = contour_likeness(steps, FINAL)
    assert likeness.shape == (4, 3)
    assert (likeness[1:] > likeness[:-1]).all()
    torch.testing.assert_close(likeness[-1], torch.ones(3))
    assert likeness[0].abs().max() < 0.1
    # Contours know no brightness, and of a flat image there are none.
    torch.testing.assert_close(contour_likeness(0.3 * FINAL[None] + 0.2, FINAL), torch.ones(1, 3))
    assert not contour_likeness(torch.zeros_like(FINAL)[None], FINAL).any()


def test_half_of_the_way():
    curve = torch.tensor([[0.0, 0.2], [0.1, 0.2], [0.6, 0.9], [1.0, 0.8]])
    assert half_risen(curve).tolist() == [2, 2]
    assert half_risen(torch.ones(3, 1)).tolist() == [0]


def test_readings_settle_on_the_final_ones():
    """The middle image is of other scenes: nothing settles before the one after it."""
    torch.manual_seed(0)
    judge = Judge(width=8).eval()
    with torch.no_grad():  # an untrained judge reads all alike; this one reads brightness
        for head in judge.heads.values():
            head.weight.mul_(300)
        judge.heads["class"].bias[-1] = -1e6  # and takes nothing for wreckage
    others = -FINAL
    steps = torch.stack([FINAL, others, FINAL, FINAL])
    found = emergence(judge, steps, FINAL)
    assert found.agrees.keys() == found.settled.keys() == ATTRIBUTES.keys()
    at_end, between = judge.read(FINAL), judge.read(others)
    assert all(v.valid for v in at_end)
    for name in ATTRIBUTES:
        same = [a.attributes[name] == b.attributes[name] and b.valid for a, b in zip(at_end, between, strict=True)]
        assert found.agrees[name].tolist() == [[True] * 3, same, [True] * 3, [True] * 3]
        assert found.settled[name] == [0 if each else 2 for each in same]
    assert not all(all(step) for table in found.agrees.values() for step in table.tolist())
