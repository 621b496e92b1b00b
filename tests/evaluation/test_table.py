"""The table of ``tide evaluate``: its parts against the same measured one by one."""

from __future__ import annotations

import pytest
import torch

from tide.activations import collect, prepare
from tide.data import open_source
from tide.errors import TideError
from tide.evaluation import PCA, evaluate, evaluate_reconstruction, evaluation_sentence, evaluation_text, with_sae
from tide.sae import TIDE, TIDEConfig

N_FIT, N_IMAGES = 3, 10


@pytest.fixture(scope="module")
def model(adapter) -> TIDE:
    torch.manual_seed(0)
    return TIDE(TIDEConfig(adapter.d_model, 256, 224, block=6))


@pytest.fixture(scope="module")
def figures(adapter, model) -> dict:
    source = open_source("scenes", adapter, images=N_IMAGES, batch_size=4)
    options = {"fit": 0.3, "token_fraction": 0.5, "loss_timesteps": 2, "loss_images": 5, "batch_size": 4, "seed": 3}
    return evaluate(adapter, model, source, **options)


def test_the_first_images_are_for_fitting(adapter, model, figures):
    """A share that ends within a batch; the other images come from noise of their own."""
    counts = {"fit": N_FIT, "measured": N_IMAGES - N_FIT, "loss": 5}
    assert figures["images"] == {**counts, "of": "unrecorded", "read": "10 images of scenes"}
    source = open_source("scenes", adapter, images=N_IMAGES, batch_size=4)
    (whole,) = prepare(adapter, source, batch_size=N_IMAGES, max_sequence_length=24)

    def activations(part: slice, seed: int):
        data = [(whole.latents[part], {name: value[part] for name, value in whole.text.items()})]
        passes = collect(adapter, data, [6], token_fraction=0.5, paired=False, batch_size=4, seed=seed)
        return [batches[6] for batches in passes]

    pca, held_out = PCA.fit(activations(slice(N_FIT), 3)), activations(slice(N_FIT, None), 4)
    scale = float(model.activation_scale)
    for name, reconstruct in {"tide": with_sae(model), "pca_k/4": pca.reconstruct(56)}.items():
        alone = evaluate_reconstruction(reconstruct, held_out, scale=scale)
        assert figures["models"][name]["mse"] == pytest.approx(alone["mse"], rel=1e-3)
    assert figures["models"]["tide"]["tokens"] == (N_IMAGES - N_FIT) * 32


def test_a_pca_of_more_components_than_channels_is_the_identity(figures):
    assert {name: row.get("rank") for name, row in figures["models"].items()} == {
        "tide": None,
        "pca_k": 192,
        "pca_k/4": 56,
        "mean": 0,
    }
    assert figures["models"]["pca_k"]["explained_variance"] == pytest.approx(1, abs=1e-4)
    loss = figures["diffusion_loss"]
    assert loss["variants"]["pca_k"]["loss"] == pytest.approx(loss["clean"], rel=1e-3)


def test_the_loss_is_of_as_many_images_and_timesteps_as_asked_for(figures):
    assert all(len(by_timestep) == 2 for by_timestep in figures["diffusion_loss"]["timestep"].values())


def test_as_text(figures):
    read, models, losses, fit, notes = evaluation_text(figures).split("\n\n")
    assert read.startswith("10 images of scenes: 3 to fit PCA and mean, 7 measured (224 tokens), 5 in the model.")
    names = ["SAE", "PCA k", "PCA k/4", "mean", "clean", "zeroed"]
    assert [line.split("  ")[0] for line in models.splitlines()[1:]] == names
    assert models.split("\n")[0].split() == ["mse", "cosine", "variance", "l0", "dead", "loss", "ratio", "recovered"]
    by_timestep = figures["diffusion_loss"]["by_timestep"]
    assert [line.split()[1] for line in losses.splitlines()[1:]] == list(by_timestep)
    assert [line.split()[1] for line in losses.splitlines() if line.endswith("worst")] == [
        max(by_timestep, key=lambda t: by_timestep[t]["ratio"])
    ]
    assert "PCA k has all 192 components" in notes
    bins = figures["models"]["tide"]["timestep"]
    assert [line.split("  ")[0] for line in fit.splitlines()[1:]] == [f"t {name}" for name in bins]


@pytest.mark.parametrize(("fit", "n"), [(0, 0), (1, 4), (0.1, 0)])
def test_a_share_that_leaves_nothing(adapter, model, fit, n):
    source = open_source("scenes", adapter, images=4)
    with pytest.raises(TideError, match=rf"^{n} of 4 images are for fitting the baselines; give more images or anoth"):
        evaluate(adapter, model, source, fit=fit)


def test_a_model_without_a_block(adapter):
    with pytest.raises(TideError, match="does not know its block"):
        evaluate(adapter, TIDE(TIDEConfig(192, 64, 8)), open_source("scenes", adapter, images=4))


def test_a_transcoder_is_measured_by_its_target(adapter):
    """PCA and mean are of the target as well; a model that returns the target's mean explains as little as the mean."""
    config = TIDEConfig(adapter.d_model, 64, 8, block=6, tensor="feed_forward_input", target="feed_forward")
    model, source = TIDE(config), open_source("scenes", adapter, images=N_IMAGES, batch_size=4)
    options = {"token_fraction": 0.5, "loss_timesteps": 1, "loss_images": 2, "batch_size": 4}
    (whole,) = prepare(adapter, source, batch_size=N_IMAGES, max_sequence_length=24)
    tensors = {"tensor": "feed_forward_input", "target": "feed_forward"}
    (batches,) = collect(adapter, [whole], [6], token_fraction=1.0, paired=False, batch_size=N_IMAGES, **tensors)
    with torch.no_grad():
        model.W_enc.zero_()
        model.b_dec.copy_(batches[6].target.mean(0))
    figures = evaluate(adapter, model, source, **options)
    assert (figures["sae"]["kind"], figures["sae"]["target"]) == ("transcoder", "feed_forward")
    explained = {name: row["explained_variance"] for name, row in figures["models"].items()}
    assert abs(explained["tide"]) < 0.1
    assert explained["tide"] == pytest.approx(explained["mean"], abs=0.1)
    assert explained["pca_k"] > 0.2
    assert "the transcoder explains" in evaluation_sentence(figures)
