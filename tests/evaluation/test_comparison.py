"""Losses beside each other: their ratios, and where they are worst."""

from __future__ import annotations

import pytest
import torch

from tide.evaluation import PCA, comparison


def losses(by_timestep: dict[str, float]) -> dict:
    """As :func:`tide.evaluation.diffusion_loss` gives them."""
    mean = sum(by_timestep.values()) / len(by_timestep)
    errors = dict.fromkeys(by_timestep, 0.0)
    return {"loss": mean, "timestep": by_timestep, "error": 0.0, "timestep_error": errors}


@pytest.mark.parametrize(
    ("reconstructed", "ratio", "worst"),
    [(0.0, 1.0, "500"), (0.1, None, "1000")],
    ids=["nothing is lost where the input is the noise", "more than nothing is worst"],
)
def test_a_clean_loss_of_zero(monkeypatch, reconstructed, ratio, worst):
    """That of flow matching at its first timestep."""
    found = {name: losses({"1000": 0.0, "500": 0.2, "0": 0.4}) for name in ("clean", "mean", "pca_k", "pca_k/4")}
    found["tide"] = losses({"1000": reconstructed, "500": 0.3, "0": 0.5})
    found["ablated"] = losses({"1000": 0.5, "500": 0.5, "0": 0.9})
    monkeypatch.setattr(comparison, "diffusion_loss", lambda *_, **__: found)
    table = comparison.compare_losses(None, {"tide": None}, PCA(torch.zeros(1), torch.eye(1)), 8, [], 0, None)
    assert table["by_timestep"]["1000"]["ratio"] == ratio
    assert table["worst"] == worst
