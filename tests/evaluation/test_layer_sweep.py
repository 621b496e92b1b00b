"""The layer sweep: its parts against the same measured one by one, its resumption, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from tests.helpers.sweeps import OPTIONS, models, small_sweep
from tide.data import open_source
from tide.errors import TideError
from tide.evaluation import PCA, diffusion_loss, recovered, sae_intervention, sweep, zero_ablation
from tide.evaluation import layer_sweep as module
from tide.evaluation.block_tokens import read_tokens
from tide.evaluation.fit_by_timestep import by_model, fit_by_timestep
from tide.evaluation.sweep_images import Asked
from tide.evaluation.sweep_wording import sweep_sentences

VARIANTS = {"tide", "random", "neurons", "pca_k", "pca_k/4", "mean"}


@pytest.fixture(scope="module")
def found(adapter) -> dict:
    return small_sweep(adapter)


@pytest.fixture(scope="module")
def sides(adapter):
    source = open_source("scenes", adapter, images=16, batch_size=8, scene_split="test")
    return Asked(adapter, source, None, 0.5, 0.25, None, 3).sides()


def test_what_is_measured_of_each_block(found):
    assert list(found["blocks"]) == ["2", "6"]
    assert found["images"] == {
        "fit": 8, "measured": 8, "loss": 3, "tokens": 16, "read": "16 images of scenes", "fit_read": None,
        "of": "unrecorded",
    }  # fmt: skip
    for block in found["blocks"].values():
        assert block["fit"].keys() == VARIANTS
        assert block["loss"].keys() == VARIANTS | {"zero"}
        assert block["probes"].keys() == {"tide", "random", "neurons", "pca"}
        for of in (*block["fit"].values(), *block["loss"].values()):
            assert list(of["timestep"]) == [f"{t:g}" for t in found["timesteps"]]
    json.dumps(found, allow_nan=False)


def test_reconstruction_and_loss_are_those_of_the_model_alone(adapter, found, sides):
    model, at = models(adapter)[6].eval(), torch.tensor(found["timesteps"])
    tokens = read_tokens(adapter, sides.measured.images, [6], at, sides.measured.places, seed=4)[6]
    scale = float(model.activation_scale)
    alone = fit_by_timestep(by_model(model), tokens, adapter.device, scale=scale, n_latents=256)
    own = found["blocks"]["6"]["fit"]["tide"]
    assert own["explained_variance"] == pytest.approx(alone["explained_variance"], rel=1e-5)
    assert own["errors"]["cosine"] == pytest.approx(alone["errors"]["cosine"], rel=1e-4)
    data = sides.loss_data(adapter.device, 3)
    changes = {"tide": sae_intervention(model), "zero": zero_ablation}
    loss = diffusion_loss(adapter, data, 6, changes, timesteps=at, seed=3)
    of = found["blocks"]["6"]["loss"]
    assert found["clean"]["loss"] == pytest.approx(loss["clean"]["loss"])
    assert of["zero"]["loss"] == pytest.approx(loss["zero"]["loss"])
    share = recovered(*(loss[name]["loss"] for name in ("clean", "tide", "zero")), loss["zero"]["error"])
    assert of["tide"]["recovered"] == (None if math.isnan(share) else pytest.approx(share))


def test_baselines_are_fitted_to_the_other_side(adapter, found, sides):
    at = torch.tensor(found["timesteps"])
    fitted = read_tokens(adapter, sides.fitted.images, [6], at, sides.fitted.places, seed=3)[6]
    measured = read_tokens(adapter, sides.measured.images, [6], at, sides.measured.places, seed=4)[6]
    pca = PCA.fit_rows(fitted.x.flatten(0, 2).split(100))
    x = measured.x.flatten(0, 2)
    error = (pca.project(x, 16) - x).square().sum()
    expected = 1 - float(error / (x - x.mean(0)).square().sum())
    assert found["blocks"]["6"]["fit"]["pca_k"]["explained_variance"] == pytest.approx(expected, rel=1e-4)


def test_scenes_are_labelled_token_by_token(found, sides):
    masks = sides.measured.source.batches.masks(16, (8, 8))
    for i, concept in enumerate(sides.labels.names):
        expected = masks[concept][8:].gather(1, sides.measured.places).flatten()
        assert torch.equal(sides.labels.measured[:, i], expected)
    assert found["concepts"].keys() == set(sides.labels.names)


def test_passes_are_shared(adapter):
    """A batch a side and timestep, and the clean loss; seven interventions of each block at two timesteps."""

    def calls(*blocks: int) -> int:
        seen = []
        handle = adapter.transformer.register_forward_pre_hook(lambda *_: seen.append(1))
        small_sweep(adapter, models(adapter, blocks))
        handle.remove()
        return len(seen)

    assert calls(6) == 2 * 2 + 2 + 2 * 7
    assert calls(2, 6) == 2 * 2 + 2 + 2 * 2 * 7


def test_blocks_beyond_the_memory_have_passes_of_their_own(adapter, found, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    assert small_sweep(adapter) == found


def test_an_interrupted_sweep_is_resumed(adapter, found, tmp_path, monkeypatch):
    """The finished block is not measured again; the result is that of a sweep without interruption."""
    done = []

    def stop(block: int) -> None:
        done.append(block)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_sweep(adapter, out=tmp_path, finished=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block-2.json", "images.json"]
    assert small_sweep(adapter, out=tmp_path, finished=done.append) == found
    assert done == [2, 6]
    monkeypatch.setattr(module, "clean_losses", lambda *_, **__: pytest.fail("nothing is left to measure"))
    assert small_sweep(adapter, out=tmp_path) == found


def test_another_block_is_added_to_what_is_kept(adapter, found, tmp_path):
    small_sweep(adapter, models(adapter, (6,)), out=tmp_path)
    assert small_sweep(adapter, out=tmp_path) == found


def test_figures_of_other_options_or_weights(adapter, tmp_path):
    small_sweep(adapter, models(adapter, (6,)), out=tmp_path)
    with pytest.raises(TideError, match=r"block-6.json was made with other options \(seed 3, now 4\); use the same op"):
        small_sweep(adapter, models(adapter, (6,)), out=tmp_path, seed=4)
    other = models(adapter, (6,))
    with torch.no_grad():
        other[6].b_dec.add_(1)
    with pytest.raises(TideError, match=r"block-6.json was made with other options \(weights "):
        small_sweep(adapter, other, out=shutil.copytree(tmp_path, tmp_path / "copy"))


def test_images_of_their_own_to_fit_to(adapter):
    fit_source = open_source("scenes", adapter, images=8, batch_size=8, scene_split="train")
    found = small_sweep(adapter, models(adapter, (6,)), fit_source=fit_source)
    assert (found["images"]["fit"], found["images"]["measured"]) == (8, 16)
    assert found["images"]["fit_read"] == "8 images of scenes"


def test_words_of_captions(adapter, tmp_path):
    """A source that knows no masks is probed for the words that are asked for, or for none."""
    from tide.pictures import to_image
    from tide.scenes import images_of, prompts

    pairs = prompts("train", 40, 0)
    images = images_of([scene for scene, _ in pairs])
    pictures = [(to_image(image), text) for image, (_, text) in zip(images, pairs, strict=True)]
    source = open_source(pictures, adapter, batch_size=8)
    options = {**OPTIONS, "loss_images": 1, "timesteps": 1}
    found = sweep(adapter, models(adapter, (6,)), source, concepts=["near", "whale"], **options)
    assert (list(found["concepts"]), found["left_out"]) == (["near"], ["whale"])
    assert sweep_sentences(found)[-1] == "Left out, since too few show them or too few do not: whale."
    assert found["concepts"]["near"]["level"] == "caption"
    assert found["blocks"]["6"]["probes"]["tide"]["1"]["concepts"].keys() == {"near"}
    without = sweep(adapter, models(adapter, (6,)), source, **options)
    assert (without["concepts"], without["blocks"]["6"]["probes"]) == (None, None)
    assert without["average"]["probes"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_fraction": 0.0}, "token_fraction"),
        ({"fit": 0.0}, "^0 of 16 images are for fitting the baselines"),
        ({"concepts": ["whale"]}, "^scenes have no concept 'whale'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(adapter, options, message):
    with pytest.raises(TideError, match=message):
        small_sweep(adapter, **options)
