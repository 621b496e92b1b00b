"""What a training measures of its model when it ends."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from tests.helpers.trainings import batch, model, stream, trainer
from tide.runs import contents
from tide.training.measured import DEAD_TOKENS, fall_at_the_end, measure, measured_before, on_tokens


def test_variance_and_l0_are_those_of_dense_latents():
    sae, rows = model(activation="relu").train(), batch(0)
    sae.calibrate(rows.x, rows.position)
    found = on_tokens(sae, rows)
    assert sae.training
    x, active = rows.x.double(), (sae.dense(rows.x, rows.position) != 0).sum(1).double()
    with torch.no_grad():
        error = (sae.eval()(rows.x, rows.position).double() - x).square().sum()
    assert found["explained_variance"] == pytest.approx(float(1 - error / (x - x.mean(0)).square().sum()), rel=1e-6)
    assert found["l0"] == pytest.approx(float(active.mean()))
    assert found["l0_low"] == pytest.approx(float(active.quantile(0.1)), rel=1e-6)


def test_dead_latents_are_those_silent_on_the_last_tokens():
    sae = model()
    silent = torch.zeros(32, dtype=torch.int64)
    silent[:8] = DEAD_TOKENS
    silent[8:16] = DEAD_TOKENS - 1
    steps = DEAD_TOKENS // 64
    found = measure(sae, batch(0), silent, [], steps, 64)
    assert (found.dead, found.dead_tokens) == (0.25, DEAD_TOKENS)
    assert measure(sae, batch(0), silent, [], steps - 1, 64).dead is None  # too few tokens to tell


def test_the_fall_of_the_error():
    history = [{"step": float(step), "mse": 2.0 if step <= 90 else 1.5} for step in range(2, 101, 2)]
    assert fall_at_the_end(history, 100) == pytest.approx(0.25)
    assert fall_at_the_end(history[::3], 100) is None  # two logged steps in a tenth
    assert fall_at_the_end([], 100) is None


def test_a_training_records_what_it_measured_and_keeps_it(tmp_path):
    job = trainer(tmp_path)
    job.fit(stream)
    holds = contents(tmp_path)
    assert holds.measured.items() >= job.measured.known().items()
    assert holds.measured["mse"] == job.history[-1]["mse"]
    assert json.dumps(asdict(job.measured))
    again = trainer(tmp_path)
    again.fit(stream, resume=True)
    assert again.measured == job.measured == measured_before(tmp_path)
