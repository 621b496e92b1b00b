"""Shares of the diffusion loss that are recovered, by timestep, against zeroing and against the mean."""

from __future__ import annotations

import math

import pytest

from tide.evaluation.loss_by_timestep import loss_by_timestep

CLEAN = {900.0: [1.0, 1.0, 1.0], 100.0: [2.0, 2.0, 2.0]}
LOSSES = {
    "tide": {900.0: [1.5, 1.4, 1.6], 100.0: [2.5, 2.4, 2.6]},
    "mean": {900.0: [2.0, 2.1, 1.9], 100.0: [3.0, 3.1, 2.9]},
    "zero": {900.0: [3.0, 3.1, 2.9], 100.0: [4.0, 4.1, 3.9]},
}


def test_shares_and_ratios():
    found = loss_by_timestep(LOSSES, CLEAN)
    tide = found["tide"]
    assert tide["loss"] == pytest.approx(2.0)
    assert tide["ratio"] == pytest.approx(2.0 / 1.5)
    assert tide["recovered"] == pytest.approx(1 - 0.5 / 2)  # 0.5 of the 2 that zeroing adds
    assert tide["recovered_mean"] == pytest.approx(1 - 0.5 / 1)
    assert tide["timestep"]["900"]["ratio"] == pytest.approx(1.5)
    assert found["mean"]["recovered"] == pytest.approx(0.5)


def test_an_ablation_has_no_share_of_its_own():
    found = loss_by_timestep(LOSSES, CLEAN)
    assert "recovered_mean" not in found["mean"]
    assert not {"recovered", "recovered_mean"} & found["zero"].keys()


def test_errors_are_over_images():
    """Each image counts once; its timesteps are averaged first."""
    found = loss_by_timestep(LOSSES, CLEAN)["tide"]["errors"]
    assert found["loss"] == pytest.approx(0.1 / math.sqrt(3))
    # over - r under of each image: 0.5, 0.4, 0.6 less a quarter of 2, 2.1, 1.9
    assert found["recovered"] == pytest.approx(0.125 / math.sqrt(3) / 2)


def test_an_ablation_that_does_no_harm():
    losses = {**LOSSES, "zero": CLEAN}
    found = loss_by_timestep(losses, CLEAN)["tide"]
    assert math.isnan(found["recovered"])
    assert math.isnan(found["errors"]["recovered"])
    assert found["recovered_mean"] == pytest.approx(0.5)
