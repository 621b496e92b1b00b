"""``tide atlas`` on rendered scenes and on a folder of captioned images."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from tests.helpers.cli_samples import N_IMAGES
from tide import TIDE
from tide.activations import prepare
from tide.activations.collect import sample_noise
from tide.adapters import adapter_for
from tide.browser.runs import find_runs
from tide.files import file_digest
from tide.images.trained import TrainedOn
from tide.index import Index
from tide.interpretation import Annotated, mean_latents
from tide.interpretation.atlas import Atlas, label_latents
from tide.interpretation.reading import noised_activations
from tide.runs import contents, read_run
from tide.scenes import LEVEL_OF, concept_masks, images_of, prompts

N_LATENTS, N_SCENES = 96, 24


@pytest.fixture
def bundled(pipeline, tmp_path_factory, monkeypatch):
    """The random pipeline in the place of the one that ships."""
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(pipeline, data / "pipeline")
    monkeypatch.setattr("tide.scenes.pipeline.DATA", data)


@pytest.mark.usefixtures("bundled")
def test_scenes_are_labelled(cli, alpha, checkpoint, tmp_path, monkeypatch):
    """The labels are those of latents averaged over the timesteps, read all at once."""
    # Of few tokens some concept fits even a random pipeline's latents.
    monkeypatch.setattr("tide.interpretation.atlas.LEAST_TOKENS", 1)
    options = ["--images", N_SCENES, "--timesteps", 2, "--top-images", 3, "--seed", 4, "--batch-size", 7]
    result = cli("atlas", "--sae", checkpoint, "--pipeline", "scenes", *options, "--out", tmp_path)
    assert result.code == 0, result.err
    assert result.err.startswith("note: ")
    assert result.err.count("\n") == 1
    share = r"\d+(\.\d+)? %"
    assert re.fullmatch(
        rf"Of {N_LATENTS} latents on block 6, {share} never fire on {N_SCENES} images of scenes \(none of them "
        rf"training images\), {share} fit a concept with an AUROC of 0.8 or more, the median of those that fire "
        rf"does so on {share} of the tokens; see {tmp_path}/atlas.html.\n",
        result.out,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "atlas.html",
        "atlas.json",
        "atlas.safetensors",
        "run.json",
    ]
    atlas = Atlas.load(tmp_path)
    assert (atlas.n_images, atlas.n_tokens, len(atlas.timesteps)) == (N_SCENES, 64, 2)
    assert atlas.maps.shape == (N_LATENTS, 3, 8, 8)
    model, adapter = TIDE.from_pretrained(checkpoint), adapter_for(alpha)
    assert atlas.timesteps.tolist() == adapter.sampling_timesteps(2).tolist()
    facts = json.loads((tmp_path / "atlas.json").read_text())
    assert (facts["data"], facts["block"], "run" in facts) == ("scenes", 6, False)
    assert read_run(tmp_path)["arguments"]["images"] == N_SCENES
    holds = contents(tmp_path)
    assert (holds.kind, holds.blocks, holds.data) == ("atlas", [6], {"name": "scenes", "images": N_SCENES})
    assert holds.measured.keys() == {"dead", "labelled"}
    page = (tmp_path / "atlas.html").read_text()
    assert f"chosen and measured on the same {N_SCENES} scenes, so the AUROC is optimistic." in page

    scenes, captions = zip(*prompts("test", N_SCENES, 4), strict=True)
    rows = []
    for batch in prepare(adapter, [(images_of(scenes), list(captions))], batch_size=7, max_sequence_length=24):
        noise = sample_noise(batch.latents.shape, 4, len(rows) * 7)
        x, _ = noised_activations(adapter, model, batch, noise, atlas.timesteps)
        rows.append(mean_latents(model, Annotated(atlas.timesteps, x)))
    masks = {concept: mask.flatten() for concept, mask in concept_masks(scenes, (8, 8)).items()}
    assert atlas.labels == label_latents(torch.cat(rows), masks, LEVEL_OF)
    assert any(atlas.labels)


@pytest.mark.usefixtures("bundled")
def test_labels_of_some_of_the_images(cli, checkpoint, tmp_path, monkeypatch):
    """Where the latents of all images would not fit into memory."""
    monkeypatch.setattr("tide.interpretation.atlas_reading.LABEL_BYTES", 4 * 64 * N_LATENTS * 10)
    options = ["--images", 16, "--timesteps", 1, "--batch-size", 6, "--out", tmp_path]
    assert cli("atlas", "--sae", checkpoint, "--pipeline", "scenes", *options).code == 0
    assert "measured on the same 10 scenes" in (tmp_path / "atlas.html").read_text()


def test_images_of_a_folder(cli, checkpoint, images, tmp_path):
    """Without masks there are no labels; the page is cut to the most active latents."""
    options = ["--data", images, "--timesteps", 2, "--latents", 7, "--out", tmp_path]
    result = cli("atlas", "--sae", checkpoint, *options)
    assert (result.code, result.err) == (0, "")
    assert "concept" not in result.out
    atlas = Atlas.load(tmp_path)
    assert atlas.n_images == N_IMAGES
    assert atlas.labels is None
    page = (tmp_path / "atlas.html").read_text()
    assert "The page holds the 7 most active of the " in page
    assert "optimistic" not in page
    read = f"the {N_IMAGES} images of {images}/ (9 of them training images)"
    assert f"never fire on {read}, the median" in result.out
    assert f", {read}." in page
    assert {each.name for each in atlas.images.values()} <= {path.name for path in images.iterdir()}
    assert {each.caption for each in atlas.images.values()} != {""}


def test_an_index_beside_the_atlas(cli, checkpoint, images, tmp_path):
    """One pass makes both; the folder can be opened and exported without the options of the atlas."""
    out = tmp_path / "out"
    result = cli("atlas", "--sae", checkpoint, "--data", images, "--timesteps", 2, "--index", "--out", out)
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith(f"; see {out}/atlas.html, or look through it with tide browse {out}.\n")
    names = ["atlas.html", "atlas.json", "atlas.safetensors", "index", "run.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    atlas, index = Atlas.load(out), Index(out)
    assert torch.equal(atlas.frequency, index.atlas().frequency)
    assert atlas.top_images.shape == (N_LATENTS, 8)
    assert len(atlas.timesteps) == 2
    holds = contents(out)
    assert holds.files["index"] == "index"
    assert holds.configuration["top_images"] == 8
    assert "Monosemanticity is how alike the captions are" in (out / "atlas.html").read_text()
    (run,) = find_runs([out])
    assert run.checkpoint == checkpoint.resolve()


def test_an_interrupted_index_is_resumed(cli, checkpoint, images, tmp_path, monkeypatch):
    """From what was saved, and without reading these images again."""
    monkeypatch.setattr("tide.index.building.SAVED_AFTER", 0.0)
    monkeypatch.setattr("tide.index.building.SAVED_SHARE", 0.0)
    arguments = ["atlas", "--sae", checkpoint, "--data", images, "--timesteps", 1, "--index", "--batch-size", 5]
    assert cli(*arguments, "--out", tmp_path / "whole").code == 0
    read = []

    def noised(*args: object) -> object:
        read.append(len(args[2].latents))
        if len(read) == 2:
            raise KeyboardInterrupt
        return noised_activations(*args)

    monkeypatch.setattr("tide.index.building.noised_activations", noised)
    result = cli(*arguments, "--out", tmp_path / "out")
    out = tmp_path / "out"
    resumes = f"tide: interrupted; the index in {out} is unfinished, the same command resumes it\n"
    assert (result.code, result.err) == (130, resumes)
    assert cli(*arguments, "--out", out).code == 0
    assert read == [5, 5, 5]
    assert torch.equal(Atlas.load(out).maps, Atlas.load(tmp_path / "whole").maps)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def test_images_that_trained_the_checkpoint_are_counted(cli, checkpoint, images, tmp_path):
    model = TIDE.from_pretrained(checkpoint)
    files = sorted(path for path in images.iterdir() if path.suffix == ".png")
    for n, share in ((0, "none"), (2, "2"), (N_IMAGES, "all")):
        digests = frozenset(file_digest(path)[:16] for path in files[:n])
        model.trained_on = TrainedOn(("photos",), digests)
        model.save_pretrained(tmp_path / f"sae-{n}")
        options = ["--data", images, "--timesteps", 1, "--out", tmp_path / f"atlas-{n}"]
        said = f"never fire on the {N_IMAGES} images of {images}/ ({share} of them training images), "
        assert said in cli("atlas", "--sae", tmp_path / f"sae-{n}", *options).out


def test_latents_tell_words_of_the_captions(cli, checkpoint, images, tmp_path, monkeypatch):
    """With a bar that every latent clears."""
    monkeypatch.setattr("tide.interpretation.word_labels.LEAST_IMAGES", 1)
    monkeypatch.setattr("tide.interpretation.word_labels.LEAST_DEVIATIONS", -9.0)
    monkeypatch.setattr("tide.interpretation.word_labels.LEAST_AUROC", 0.0)
    captions = {path: f"{'red' if i % 4 < 2 else 'blue'}" for i, path in enumerate(sorted(images.glob("*.png")))}
    folder = tmp_path / "own"
    folder.mkdir()
    for path, caption in captions.items():
        shutil.copy(path, folder)
        (folder / path.with_suffix(".txt").name).write_text(caption)
    result = cli("atlas", "--sae", checkpoint, "--data", folder, "--timesteps", 1, "--out", tmp_path / "out")
    assert "100 % tell a word of the captions with an AUROC of 0.8 or more" in result.out
    assert "chosen on every second image and measured on the others" in (tmp_path / "out" / "atlas.html").read_text()
    atlas = Atlas.load(tmp_path / "out")
    assert {label.concept for label in atlas.labels} <= {"red", "blue"}


def test_the_batch_size_changes_rounding_alone(cli, checkpoint, images, tmp_path):
    """The noise of an image is its own."""
    for size in (3, 10):
        options = ["--data", images, "--timesteps", 2, "--batch-size", size, "--out", tmp_path / str(size)]
        assert cli("atlas", "--sae", checkpoint, *options).code == 0
    first, second = (Atlas.load(tmp_path / size) for size in ("3", "10"))
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-3, atol=1e-3)
    assert (first.frequency - second.frequency).abs().max() < 0.01
    assert np.mean((first.top_images == second.top_images).numpy()) > 0.95


def test_fast_reads_less(cli, checkpoint, images, tmp_path):
    assert cli("atlas", "--sae", checkpoint, "--data", images, "--fast", "--out", tmp_path).code == 0
    facts = json.loads((tmp_path / "atlas.json").read_text())
    assert contents(tmp_path).configuration["images"] == 64
    assert len(facts["timesteps"]) == 4


def test_bad_input(cli, checkpoint, images, tmp_path):
    def refused(*options: object) -> str:
        result = cli("atlas", "--sae", checkpoint, "--out", tmp_path / "out", *options)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert not (tmp_path / "out").exists()
        return result.err.removeprefix("tide: error: ").strip()

    (tmp_path / "empty").mkdir()
    assert refused() == "what images to read is not clear; give --data"
    assert "holds no images" in refused("--data", tmp_path / "empty")
    assert "--latents: '0' is not a count; give a whole number" in refused("--data", images, "--latents", 0)
    assert refused("--data", images, "--timesteps", 1001) == "1001 sampling steps asked for; give 1..1000"
    (tmp_path / "empty" / "a.png").write_text("no image")
    assert "is not a readable image" in refused("--data", tmp_path / "empty")


def test_no_latent_fires(cli, checkpoint, images, tmp_path):
    model = TIDE.from_pretrained(checkpoint)
    with torch.no_grad():
        model.b_enc.fill_(-1e6)
    model.save_pretrained(tmp_path / "dead")
    result = cli("atlas", "--sae", tmp_path / "dead", "--data", images, "--timesteps", 1, "--out", tmp_path / "out")
    assert result.code == 2
    assert result.err.startswith("tide: error: none of the 96 latents fires on these images; train the SAE for longer")
    assert not (tmp_path / "out").exists()
