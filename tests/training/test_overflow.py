"""Codes on a GPU have 4 k places a token: a token with more latents is counted, and a training says so."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.helpers.trainings import ROWS, model, stream, trainer
from tide.errors import TideWarning


def test_a_cpu_has_a_place_for_each(tmp_path):
    job = trainer(tmp_path, model(activation="jumprelu"), activation="jumprelu", steps=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TideWarning)
        job.fit(stream())
    assert [entry["overflow"] for entry in job.history] == [0.0, 0.0]


def test_topk_has_k_latents_and_counts_nothing(tmp_path):
    job = trainer(tmp_path, steps=10)
    job.fit(stream())
    assert "overflow" not in job.history[0]


def test_what_does_not_fit_is_said_once(tmp_path, monkeypatch):
    sae = model(activation="jumprelu")
    whole = sae.add_gradients

    def with_overflow(*args, **options):
        return whole(*args, **options)._replace(overflow=torch.tensor(ROWS // 4))

    monkeypatch.setattr(sae, "add_gradients", with_overflow)
    job = trainer(tmp_path, sae, activation="jumprelu", steps=20)
    with pytest.warns(TideWarning, match=r"at step 10 25.0% of the tokens have more latents than the 4 k") as said:
        job.fit(stream())
    assert [entry["overflow"] for entry in job.history] == [0.25, 0.25]
    assert sum("4 k places" in str(each.message) for each in said) == 1
