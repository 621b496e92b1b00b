"""Digests of weights: of values, of names and of order, and of nothing else."""

from __future__ import annotations

import pytest
import torch
from accelerate import disk_offload
from torch import nn

from tide.errors import TideError
from tide.fingerprint import fingerprint, pipeline_fingerprints


def layers(seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [nn.Linear(3, 2), nn.BatchNorm1d(2)]  # the second has a number without dimensions


def test_equal_weights_have_one_fingerprint():
    assert fingerprint(layers()) == fingerprint(layers())
    assert len(fingerprint(layers())) == 16


def test_any_change_shows():
    changed = layers()
    with torch.no_grad():
        changed[0].weight[1, 2] = torch.nextafter(changed[0].weight[1, 2], torch.tensor(2.0))
    counted = layers()
    counted[1].num_batches_tracked += 1
    found = [fingerprint(each) for each in (layers(), layers(1), changed, counted, layers()[::-1], layers()[:1])]
    assert len(set(found)) == len(found)


def test_offloading_and_wrapping_change_nothing(tmp_path):
    away = layers()
    disk_offload(away[0], str(tmp_path), torch.device("cpu"))
    assert away[0].weight.is_meta
    assert fingerprint([torch.compile(away[0]), away[1]]) == fingerprint(layers())
    assert away[0].weight.is_meta


def test_weights_that_are_not_loaded_are_an_error():
    with pytest.raises(TideError, match="the weights bias of a Linear are not loaded"):
        fingerprint([nn.Linear(2, 2, device="meta")])


def test_the_fingerprints_of_a_pipeline_tell_which_part_is_another(alpha):
    before = pipeline_fingerprints(alpha)
    assert set(before) == {"scheduler", "text_encoder", "transformer", "vae"}
    assert pipeline_fingerprints(alpha) == before
    parameter = next(alpha.vae.parameters())
    kept = parameter.detach().clone()
    scheduler = alpha.scheduler
    try:
        with torch.no_grad():
            parameter[0] += 1
        alpha.scheduler = type(scheduler).from_config(scheduler.config, beta_end=0.5)
        now = pipeline_fingerprints(alpha)
    finally:
        alpha.scheduler = scheduler
        parameter.data.copy_(kept)
    assert {name for name in before if now[name] != before[name]} == {"scheduler", "vae"}
