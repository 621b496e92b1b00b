"""What ``tide evaluate`` and ``tide concepts`` say of a user's own pictures: which images, how well, what is chance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tide.runs import contents

N_OWN = 40


def strict(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def draw(folder: Path, n: int, start: int = 0) -> None:
    """Pictures by class folder: every second one is blue, the others red; "seven" is said of every third."""
    folder.mkdir(exist_ok=True)
    lines = []
    for i in range(start, start + n):
        pixels = np.random.default_rng(i).integers(0, 30, (64, 64, 3)).astype(np.uint8)
        pixels[..., 2 if i % 2 else 0] += 220
        Image.fromarray(pixels).save(folder / f"own-{i}.png")
        caption = f"a {'blue' if i % 2 else 'red'} {'seven' if i % 3 == 0 else 'two'}"
        lines.append(json.dumps({"file_name": f"own-{i}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "pictures"
    draw(folder, N_OWN)
    return folder


def test_evaluate_leaves_training_images_out(cli, checkpoint, images, own, tmp_path):
    """The checkpoint's own images, copied under other names among new ones."""
    mixed = shutil.copytree(own, tmp_path / "mixed")
    for path in images.glob("*.png"):
        shutil.copy(path, mixed / f"again-{path.name}")
    options = ["--loss-timesteps", 2, "--loss-images", 4, "--out", tmp_path / "out"]
    result = cli("evaluate", "--sae", checkpoint, "--data", mixed, *options)
    assert (result.code, result.err) == (0, "")
    found = strict(tmp_path / "out" / "metrics.json")["images"]
    assert (found["of"], found["fit"], found["measured"]) == ("held-out", 20, 21)  # one image was not trained on
    assert found["read"].startswith(f"41 of the 50 images of {mixed}")
    assert result.out.startswith(f"{found['read']}: 20 to fit PCA and mean, 21 measured")
    assert result.out.splitlines()[-1].startswith("On 21 held-out images the TIDE explains")


def test_evaluate_a_checkpoint_that_does_not_record_its_images(cli, old, own, tmp_path):
    options = ["--loss-timesteps", 1, "--loss-images", 2, "--images", 8, "--out", tmp_path / "out"]
    result = cli("evaluate", "--sae", old, "--data", own, *options)
    assert (result.code, result.err) == (0, "")
    assert strict(tmp_path / "out" / "metrics.json")["images"]["of"] == "unrecorded"
    assert "On 4 images (the checkpoint does not record what it was trained on) the TIDE explains" in result.out
    assert "held-out" not in result.out


@pytest.fixture
def old(checkpoint, tmp_path) -> Path:
    """The checkpoint without its record of images, as older ones are."""
    from tide import TIDE

    model = TIDE.from_pretrained(checkpoint)
    model.trained_on = None
    model.save_pretrained(tmp_path / "old")
    return tmp_path / "old"


def test_a_random_pipeline_recovers_nothing(cli, checkpoint, own, tmp_path):
    """Zeroing a block of random weights does no harm: no share is shown, and no figure that is not a number."""
    result = cli("evaluate", "--sae", checkpoint, "--data", own, "--fast", "--out", tmp_path / "out")
    loss = strict(tmp_path / "out" / "metrics.json")["diffusion_loss"]
    assert loss["recovered"] is None
    assert {each["recovered"] for each in loss["variants"].values()} == {None}
    assert contents(tmp_path / "out").measured["recovered"] is None
    assert "no recovered share can be told from zeroing the block (" in result.out.splitlines()[-1]
    assert "recovered -: zeroing adds no loss beyond its sampling error" in result.out
    assert not any(word in result.out for word in ("nan", "inf ", "None"))


def test_concepts_tell_a_find_from_chance(cli, checkpoint, own, tmp_path):
    """The pipeline is random, so its VAE passes on little; with hardly any noise that is enough for a colour."""
    options = ["--concepts", "seven,Blue", "--images-per-concept", 20, "--out", tmp_path / "out"]
    result = cli("concepts", "--sae", checkpoint, "--data", own, *options)
    assert (result.code, result.err) == (0, "")
    found = strict(tmp_path / "out" / "concepts.json")
    assert found["images"]["of"] == "held-out"
    header, *rows = result.out.split("\n\n")[0].splitlines()
    assert header.split() == ["concept", "with", "without", "latent", "auroc", "95", "%", "neuron", "random", "remark"]
    seven = next(row for row in rows if row.startswith("seven"))
    low, high = found["concepts"]["seven"]["interval"]
    assert f"{low:.2f}-{high:.2f}" in seven
    if low <= 0.5:
        assert seven.endswith("near chance")
        assert "not seven" in result.out.splitlines()[-1].replace("blue, ", "")
    assert contents(tmp_path / "out").measured["auroc"]["blue"] == found["concepts"]["blue"]["auroc"]
    assert contents(tmp_path / "out").data["of"] == "held-out"


def test_few_images_with_a_word(cli, checkpoint, own, tmp_path):
    options = ["--concepts", "blue", "--images-per-concept", 5, "--out", tmp_path / "out"]
    result = cli("concepts", "--sae", checkpoint, "--data", own, *options)
    assert strict(tmp_path / "out" / "concepts.json")["concepts"]["blue"]["auroc"] is None
    assert "too few images to score (fewer than 8 with it or without)" in result.out
    assert "0 of 1 concept on block 6 have a latent above chance; not blue" in result.out


def test_a_word_that_no_caption_holds_says_what_was_examined(cli, checkpoint, own, tmp_path):
    command = ["concepts", "--sae", checkpoint, "--data", own, "--concepts", "whale", "--out", tmp_path / "out"]
    for images, read, more in (
        ([], f"the 40 images of {own}", ""),
        (["--images", 10], f"10 of the 40 images of {own}", ", or examine more images (--images)"),
    ):
        said = cli(*command, *images).err
        assert said.startswith(f"tide: error: {read}")
        assert said.endswith(f": no caption holds 'whale'; name words that some of them hold{more}\n")
