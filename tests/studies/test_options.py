"""The options of the trainings of a study: which may be set, and what they take the place of."""

from __future__ import annotations

import pytest

from tide.errors import TideError
from tide.studies import ablation, centring
from tide.studies.models import Models
from tide.studies.options import WIDTH, Options
from tide.training import TrainConfig


def options(tmp_path, **values) -> Options:
    return Options(tmp_path, set=values, say=lambda text: None)


def test_nothing_set_changes_nothing(tmp_path):
    config = TrainConfig(steps=7, k=9)
    assert options(tmp_path).training(config) == config


def test_a_density_takes_the_place_of_the_studys_k(tmp_path):
    config = options(tmp_path, density=0.1).training(TrainConfig(n_latents=100, k=9))
    assert config.sizes(WIDTH) == (100, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": 3, "density": 0.1}, "--set density is not used with k; leave it off"),
        ({"activation": "topk", "bandwidth": 0.4}, "--set bandwidth is not used with activation = topk; leave it off"),
        ({"k": 0}, "k = 0 must lie between 1 and n_latents = 3072"),
        ({"k": 5000}, "k = 5000 must lie between 1 and n_latents = 3072"),
        ({"n_latents": 48}, r"k = 64 \(the default\) must lie between 1 and n_latents = 48"),
    ],
)
def test_what_is_refused_before_anything_is_collected(tmp_path, values, message):
    with pytest.raises(TideError, match=message):
        options(tmp_path, **values).training(TrainConfig())


def test_centring_sets_centre_itself(tmp_path):
    with pytest.raises(TideError, match="--set centre is not used: the study sets it itself; leave it off"):
        centring.reproduce(options(tmp_path, centre=True))


@pytest.mark.parametrize("sizes", [ablation.DEFAULT, centring.DEFAULT], ids=["ablation", "centring"])
def test_studies_of_the_papers_autoencoder(tmp_path, sizes):
    config = sizes.training(options(tmp_path))
    assert (config.activation, config.sizes(WIDTH)) == ("topk", (3072, 154))


def test_studies_of_trained_models_look_into_the_default(tmp_path):
    models = Models.of_study(options(tmp_path))
    assert (models.config.activation, models.config.sizes(WIDTH)) == ("jumprelu", (3072, 64))
    assert models.bench.adapter.d_model == WIDTH
