"""collect -> train -> evaluate -> concepts -> edit, as a user would run them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.helpers.cli_samples import N_IMAGES
from tests.helpers.sheets import places
from tide import TIDE
from tide.activations import ActivationStore
from tide.errors import TideWarning
from tide.interpretation.abrupt_change import abrupt_change
from tide.runs import contents, read_run
from tide.strips import GAP, shown

#: Every latent of the checkpoint.
ALL = ",".join(map(str, range(96)))


def test_collect_writes_one_store_a_block(store, pipeline, images):
    for block in (3, 6):
        found = ActivationStore(store / f"block-{block}")
        assert found.complete
        assert found.paired
        assert len(found) == (N_IMAGES - 1) * 2 * 32  # one is held out
        assert found.info["block"] == block
        assert found.info["pipeline"] == str(pipeline)
        assert found.info["family"] == "pixart"
        assert found.info["data"] == str(images)
        assert found.info["size"] == [64, 64]
    run = json.loads((store / "run.json").read_text())
    assert run["command"] == "collect"
    assert run["seed"] == 0
    assert run["arguments"]["token_fraction"] == 0.5
    assert "torch" in run["versions"]
    assert "cpus" in run["machine"]


def test_train_makes_a_checkpoint_of_the_store(checkpoint, pipeline):
    model = TIDE.from_pretrained(checkpoint)
    assert model.modulation is not None
    assert (model.n_latents, model.config.k, model.config.block, model.d_model) == (96, 8, 6, 192)
    assert model.config.pipeline == str(pipeline)
    assert json.loads((checkpoint / "training.json").read_text())["config"]["n_latents"] == 96
    assert json.loads((checkpoint / "run.json").read_text())["seed"] == 0


def test_evaluate(cli, checkpoint, pipeline, images, tmp_path):
    """The pipeline is the one that the checkpoint names; all images but one trained it, and that is said."""
    with pytest.warns(
        TideWarning,
        match=r"^fewer than 8 images of .* are left .* are measured; give .* collect \(or train live\)",
    ):
        result = cli("evaluate", "--sae", checkpoint, "--data", images, "--fast", "--out", tmp_path)
    assert result.code == 0
    assert "PCA k/4" in result.out
    assert "\nt " in result.out
    assert result.out.splitlines()[-1].startswith("On 5 training images the TIDE explains")
    assert "held-out" not in result.out
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    counts = {"fit": 5, "measured": 5, "loss": 5}
    assert metrics["images"] == {**counts, "of": "training", "read": f"the 10 images of {images}/"}
    ranks = {name: row.get("rank") for name, row in metrics["models"].items()}
    assert ranks == {"tide": None, "pca_k": 8, "pca_k/4": 2, "mean": 0}
    mse = {name: row["mse"] for name, row in metrics["models"].items()}
    assert mse["pca_k"] < mse["pca_k/4"] < mse["mean"]
    # k, on other tokens than the threshold was set on
    assert metrics["models"]["tide"]["l0"] == pytest.approx(8, rel=0.1)
    assert metrics["models"]["tide"]["timestep"]
    loss = metrics["diffusion_loss"]
    assert loss["ratio"] == pytest.approx(loss["reconstructed"] / loss["clean"])
    assert f"{loss['reconstructed']:#.4g} against {loss['clean']:#.4g} clean, ratio {loss['ratio']:.2f}" in result.out
    holds = contents(tmp_path)
    assert read_run(tmp_path)["arguments"]["fast"] is True
    assert (holds.configuration["images"], holds.configuration["loss_timesteps"]) == (32, 3)
    assert (holds.kind, holds.blocks, holds.family, holds.pipeline) == ("evaluation", [6], "pixart", str(pipeline))
    assert holds.data == {"name": str(images), "images": N_IMAGES, "of": "training"}
    assert holds.autoencoder["folder"] == str(checkpoint)
    assert holds.autoencoder["config"]["k"] == 8
    assert {"transformer", "vae", "scheduler"} <= holds.weights.keys()
    assert (holds.measured["ratio"], holds.measured["recovered"]) == (loss["ratio"], loss["recovered"])


def test_evaluate_on_scenes_unless_data_are_named(cli, checkpoint, pipeline, tmp_path, monkeypatch):
    """With the bundled pipeline; they are of the held-out combinations."""
    monkeypatch.setattr("tide.scenes.pipeline.DATA", tmp_path)
    shutil.copytree(pipeline, tmp_path / "pipeline")
    options = ["--images", 6, "--loss-timesteps", 1, "--loss-images", 2]
    for name, data in (("a", []), ("b", ["--data", "scenes"])):
        command = ["evaluate", "--sae", checkpoint, "--pipeline", "scenes", *data, *options]
        assert cli(*command, "--out", tmp_path / name).code == 0
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    counts = {"fit": 3, "measured": 3, "loss": 2}
    assert first["images"] == {**counts, "of": "held-out", "read": "6 images of scenes"}
    assert [first[name] for name in ("models", "diffusion_loss")] == [
        second[name] for name in ("models", "diffusion_loss")
    ]
    data = {"name": "scenes", "images": 6, "of": "held-out"}
    assert contents(tmp_path / "a").data == contents(tmp_path / "b").data == data


def test_concepts_of_captions(cli, checkpoint, images, tmp_path):
    captions = [json.loads(line)["text"] for line in (images / "metadata.jsonl").read_text().splitlines()]
    words = [word for word in ("near", "snow", "red") if 0 < sum(word in c.split() for c in captions) < N_IMAGES]
    options = ["--concepts", ",".join(words), "--images-per-concept", N_IMAGES, "--timesteps", 2, "--top-images", 2]
    with pytest.warns(TideWarning, match=r"so training images are used; .* collect \(or train live\) with a larger"):
        result = cli("concepts", "--sae", checkpoint, "--data", images, *options, "--out", tmp_path)
    assert result.code == 0
    found = json.loads((tmp_path / "concepts.json").read_text())
    assert found["images"]["of"] == "training"
    for word in words:
        row = found["concepts"][word]
        assert 0 < row["images"] < N_IMAGES
        assert all(word in top["caption"] for top in row["top_images"])
        assert row["latent"] == row["latents"][0]["latent"]
        assert Image.open(tmp_path / f"{word}.png").width > 4 * 250
    holds = contents(tmp_path)
    assert (holds.kind, holds.blocks) == ("concepts", [6])
    assert {"transformer", "vae", "scheduler"} <= holds.weights.keys()
    assert holds.configuration == {"images_per_concept": N_IMAGES, "timesteps": 2}
    assert holds.measured["latents"] == {word: found["concepts"][word]["latent"] for word in words}
    assert set(holds.files) == {"concepts.json", *(f"{word}.png" for word in words)}


def test_concepts_of_scenes_are_measured(cli, checkpoint, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.scenes.pipeline.DATA", tmp_path)
    shutil.copytree(pipeline, tmp_path / "pipeline")
    options = ["--images-per-concept", 24, "--timesteps", 1, "--concepts", "near,house", "--out", tmp_path / "out"]
    result = cli("concepts", "--sae", checkpoint, "--pipeline", "scenes", *options)
    assert result.code == 0
    assert result.err.startswith("note: ")
    assert result.err.count("\n") == 1
    found = json.loads((tmp_path / "out" / "concepts.json").read_text())["concepts"]
    assert set(found) == {"near", "house"}
    assert all(0 <= row["auroc"] <= 1 and 0 <= row["iou"] <= 1 for row in found.values())
    assert (tmp_path / "out" / "house.png").exists()


def test_edit_draws_growing_strength(cli, checkpoint, tmp_path):
    options = ["--prompt", "a red house", "--erase-top", 8, "--strength", 0, 1, 2, "--n-steps", 4, "--seed", 5]
    result = cli("edit", "--sae", checkpoint, *options, "--out", tmp_path)
    assert result.code == 0
    assert result.err == ""
    names = ("before", "after-0", "after-1", "after-2")
    before, none, once, twice = (np.asarray(Image.open(tmp_path / f"{name}.png"), float) for name in names)
    assert np.array_equal(before, none)
    assert 0 < abs(once - before).mean() < abs(twice - before).mean()
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width == 4 * 256 + 7 * GAP  # four pictures of 64 pixels, four times as large
        assert strip.height > 256 + 30
        for name in names:
            with Image.open(tmp_path / f"{name}.png") as picture:
                assert picture.size == (64, 64)
                places(strip, shown(picture))
    assert "Nothing changed at strength 0: strength 0 is no edit." in result.out
    report = json.loads((tmp_path / "edit.json").read_text())
    assert [each["strength"] for each in report["edits"]] == [0, 1, 2]
    run = read_run(tmp_path)
    assert (run["seed"], run["arguments"]["erase_top"]) == (5, 8)
    holds = contents(tmp_path)
    assert (holds.kind, holds.blocks, holds.family) == ("edit", [6], "pixart")
    assert holds.autoencoder["folder"] == str(checkpoint)
    assert holds.data == {"prompt": "a red house"}
    assert holds.configuration["strength"] == [0, 1, 2]
    assert holds.measured == {"edits": report["edits"]}
    assert holds.files == {**{f"{name}.png": "picture" for name in (*names, "strip")}, "edit.json": "figures"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--scale", f"{ALL}=3.0", "--branch", "both"], id="scale"),
        pytest.param(["--invert", ALL, "--renormalise"], id="invert"),
        pytest.param(["--invert-top", "4", "--steps", "0.2", "0.8"], id="invert top, part of the run"),
        pytest.param(["--towards", "a blue cone on snow"], id="towards a prompt"),
        pytest.param(["--towards", "a blue cone", "--towards-top", "3", "--guidance", "1"], id="scale its strongest"),
        pytest.param(
            ["--towards", "a blue cone", "--towards-pooled", "--towards-image", "IMAGE"], id="towards an image"
        ),
        pytest.param(
            ["--towards", "a red cone", "--towards-image", "IMAGE", "--contrast", "--towards-pooled"],
            id="style transfer",
        ),
    ],
)
def test_every_kind_of_edit(cli, checkpoint, images, tmp_path, options):
    options = [str(images / "00.png") if each == "IMAGE" else each for each in options]
    edit = ["edit", "--sae", checkpoint, "--prompt", "a red house", "--n-steps", 3, *options]
    assert cli(*edit, "--strength", 2, "--out", tmp_path).code == 0
    assert json.loads((tmp_path / "edit.json").read_text())["edits"][0]["mean_pixel_change"] > 0


def test_more_altered_tokens_change_more(cli, checkpoint, tmp_path):
    """The edit of all tokens is the edit without ``--altered``."""
    edit = ["edit", "--sae", checkpoint, "--prompt", "a red house", "--change", "red=blue", "--n-steps", 3]
    result = cli(*edit, "--altered", 1, 8, 64, "--out", tmp_path / "some")
    assert result.code == 0
    assert " in 1 token, " in result.out
    rows = json.loads((tmp_path / "some" / "edit.json").read_text())["edits"]
    assert [row["tokens"] for row in rows] == [1, 8, 64]
    moved = [row["mean_pixel_change"] for row in rows]
    assert 0 < moved[0] < moved[2]
    assert cli(*edit, "--out", tmp_path / "all").code == 0
    images = [Image.open(tmp_path / name).tobytes() for name in ("some/after-64-tokens.png", "all/after-1.png")]
    assert images[0] == images[1]


def test_a_target_that_was_kept(cli, checkpoint, tmp_path):
    """Gives the same image as the prompt that it was recorded of."""
    edit = ["edit", "--sae", checkpoint, "--prompt", "a red house", "--n-steps", 3]
    kept = tmp_path / "target.safetensors"
    assert cli(*edit, "--towards", "a tree, far", "--save-target", kept, "--out", tmp_path / "a").code == 0
    assert cli(*edit, "--target", kept, "--out", tmp_path / "b").code == 0
    images = [Image.open(tmp_path / folder / "after-1.png").tobytes() for folder in "ab"]
    assert images[0] == images[1]


def test_a_mask_confines_the_edit(cli, checkpoint, tmp_path):
    """An edit of half of the tokens differs from that of all, and from none."""
    half = np.zeros((64, 64), np.uint8)
    half[:32] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    edit = ["edit", "--sae", checkpoint, "--prompt", "a red house", "--erase-top", 8, "--n-steps", 3]
    assert cli(*edit, "--mask", tmp_path / "mask.png", "--out", tmp_path / "half").code == 0
    assert cli(*edit, "--out", tmp_path / "all").code == 0
    some, every = (json.loads((tmp_path / name / "edit.json").read_text())["edits"][0] for name in ("half", "all"))
    assert 0 < some["mean_pixel_change"] < every["mean_pixel_change"]


def test_a_fast_edit_takes_eight_steps(cli, checkpoint, tmp_path):
    edit = ["edit", "--sae", checkpoint, "--prompt", "a red house", "--erase", 1]
    assert cli(*edit, "--fast", "--out", tmp_path / "fast").code == 0
    assert cli(*edit, "--n-steps", 8, "--out", tmp_path / "eight").code == 0
    fast, eight = ((tmp_path / name / "before.png").read_bytes() for name in ("fast", "eight"))
    assert fast == eight
    assert contents(tmp_path / "fast").configuration["n_steps"] == 8


def test_trajectory(cli, checkpoint, tmp_path):
    options = ["--prompt", "a red house", "--change", "red=blue", "--n-steps", 7]
    result = cli("trajectory", "--sae", checkpoint, *options, "--out", tmp_path)
    assert (result.code, result.err) == (0, "")
    report = json.loads((tmp_path / "trajectory.json").read_text())
    assert len(report["steps"]) == 7
    assert report["steps"][-1]["cosine with the next step"] is None
    assert all(-1 <= row["cosine with the target"] <= 1 for row in report["steps"])
    found = abrupt_change([row["cosine with the next step"] for row in report["steps"][:-1]])
    if found is None:
        assert report["abrupt_change"] is None
        assert "change without a dip of the consecutive cosine over 7 steps" in result.out
    else:
        assert report["abrupt_change"] == {"step": found.index + 1, "strength": found.strength}
        assert f"change most abruptly before step {found.index + 1} of 7" in result.out
    assert len((tmp_path / "trajectory.csv").read_text().splitlines()) == 8
    with Image.open(tmp_path / "trajectory.png") as picture:
        assert min(picture.size) > 200
    holds = contents(tmp_path)
    assert (holds.kind, holds.blocks, holds.measured) == ("trajectory", [6], {"abrupt_change": report["abrupt_change"]})
    assert holds.autoencoder["folder"] == str(checkpoint)
    assert holds.data == {"prompt": "a red house", "towards": "a blue house"}
    assert holds.configuration["n_steps"] == 7
    assert all((tmp_path / name).is_file() for name in holds.files)


def test_towards_its_own_prompt_changes_nothing_but_rounding(cli, checkpoint, tmp_path):
    prompt = "a red house"
    options = ["--prompt", prompt, "--towards", prompt, "--n-steps", 3]
    assert cli("edit", "--sae", checkpoint, *options, "--out", tmp_path).code == 0
    assert json.loads((tmp_path / "edit.json").read_text())["edits"][0]["mean_pixel_change"] < 0.5


def test_a_checkpoint_that_names_its_transformer_folder(cli, checkpoint, pipeline, tmp_path):
    """As one does that was trained from Python."""
    copy = shutil.copytree(checkpoint, tmp_path / "tide")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"pipeline": f"{pipeline}/transformer"}))
    edit = ["edit", "--sae", copy, "--prompt", "a red house", "--erase", 1, "--n-steps", 2]
    assert cli(*edit, "--out", tmp_path / "a")[::2] == (0, "")
    assert cli(*edit, "--pipeline", pipeline, "--out", tmp_path / "b")[::2] == (0, "")
