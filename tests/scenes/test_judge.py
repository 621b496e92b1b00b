"""The judge without its trained weights: shapes, verdicts, files, and the wreckage it learns on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tide.scenes.judge as judging
from tide.errors import TideError
from tide.pictures import to_image
from tide.scenes import ATTRIBUTES, Judge, Scene, Verdict, images_of, load_judge, scenes
from tide.scenes.judge import HEADS, NO_OBJECT, destroy
from tide.scenes.render import REGIONS, render

IMAGES = images_of(list(scenes("train", 6)))


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(width=8).eval()


def test_verdicts(judge):
    verdicts = judge.read(IMAGES)
    with torch.no_grad():
        logits, regions = judge(IMAGES)
    assert {name: tuple(values.shape) for name, values in logits.items()} == {
        "class": (6, 6), "colour": (6, 6), "depth": (6, 2), "shadow": (6, 2), "ground": (6, 3), "style": (6, 3),
        "age": (6, 2), "orientation": (6, 2),
    }  # fmt: skip
    for i, verdict in enumerate(verdicts):
        for name, values in HEADS.items():
            probabilities = logits[name][i].softmax(0)
            assert verdict.attributes[name] == values[int(probabilities.argmax())]
            assert verdict.confidence[name] == pytest.approx(float(probabilities.max()), rel=1e-6)
    assert judge.read(IMAGES[:0]) == []
    assert regions.shape == (6, len(REGIONS), 64, 64)
    assert torch.equal(judge.regions(IMAGES), regions.argmax(1))


def test_embeddings_are_what_the_heads_read(judge):
    with torch.no_grad():
        colour = judge.heads["colour"](judge.embed_images(IMAGES))
        assert torch.equal(colour, judge(IMAGES)[0]["colour"])


def test_each_image_is_read_by_itself(judge):
    together = judge.read(IMAGES)
    assert [judge.read(IMAGES[i : i + 1])[0].attributes for i in range(6)] == [v.attributes for v in together]


def test_pictures_are_read_as_their_pixels(judge):
    images = images_of(list(scenes("train", 3)))
    rounded = ((images + 1) * 127.5).round() / 127.5 - 1  # as 8-bit pixels have them
    found = judge.read_pictures([to_image(each) for each in images])
    for verdict, expected in zip(found, judge.read(rounded), strict=True):
        assert verdict.attributes == expected.attributes
        assert verdict.confidence == pytest.approx(expected.confidence, rel=1e-5)
    with pytest.raises(TideError, match="resize"):
        judge.read_pictures([to_image(images[0, :, :32])])


def test_half_precision_images_are_read(judge):
    assert len(judge.read(IMAGES.half())) == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_wreckage(judge, bad):
    """And so never counts as a change of class."""
    images = IMAGES.clone()
    images[2, 1, 30, 30] = bad
    verdicts = judge.read(images)
    assert not verdicts[2].valid
    assert verdicts[2].confidence["class"] == 1.0
    others = [0, 1, 3, 4, 5]
    assert [verdicts[i].attributes for i in others] == [judge.read(IMAGES)[i].attributes for i in others]


def test_a_margin_tells_what_is_read_and_how_clearly(judge):
    """By hand from the logits; above zero exactly where the verdict is what is wanted."""
    items = list(scenes("test", 8))
    images = images_of(items)
    wanted = [Scene(*(v.attributes[name] for name in ATTRIBUTES)) if v.valid else item
              for v, item in zip(judge.read(images), items, strict=True)]  # fmt: skip
    wanted[0] = wanted[0].changed("ground", next(g for g in ATTRIBUTES["ground"] if g != wanted[0].ground))
    with torch.no_grad():
        logits, _ = judge(images)
    expected = []
    for i, scene in enumerate(wanted):
        gaps = []
        for name, values in logits.items():
            place = HEADS[name].index(scene[name])
            gaps.append(float(values[i, place] - max(v for j, v in enumerate(values[i]) if j != place)))
        expected.append(min(gaps))
    found = judge.margins(images, wanted)
    torch.testing.assert_close(found, torch.tensor(expected))
    read = [
        all(v.agrees(scene, name) for name in ATTRIBUTES) for v, scene in zip(judge.read(images), wanted, strict=True)
    ]
    assert (found > 0).tolist() == read
    assert not read[0]
    assert any(read)
    images[1, 0, 0, 0] = torch.nan
    assert judge.margins(images, wanted)[1] == -torch.inf


@pytest.mark.parametrize(
    "shape", [(3, 64, 64), (2, 1, 64, 64), (2, 3, 32, 64), (2, 64, 64, 3)],
    ids=["no batch", "grey", "another size", "channels last"],
)  # fmt: skip
def test_images_of_another_shape(judge, shape):
    with pytest.raises(TideError, match=r"^the judge reads images \[B, 3, 64, 64\], not \[.*\]; resize them first$"):
        judge.read(torch.zeros(shape))


def test_agreement_needs_a_valid_image():
    scene = Scene("cube", "red", "near", "with", "sand")
    attributes = {name: scene[name] for name in ATTRIBUTES}
    verdict = Verdict(attributes, dict.fromkeys(attributes, 1.0))
    assert verdict.valid
    assert all(verdict.agrees(scene, name) for name in ATTRIBUTES)
    assert not verdict.agrees(scene.changed("colour", "blue"), "colour")
    wreck = Verdict({**attributes, "class": NO_OBJECT}, verdict.confidence)
    assert not wreck.valid
    assert not any(wreck.agrees(scene, name) for name in ATTRIBUTES)


# -- files ----------------------------------------------------------------------------------------------------


def test_round_trip(judge, tmp_path):
    judge.save_pretrained(str(tmp_path / "judge"))
    loaded = load_judge(str(tmp_path / "judge"))
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, value in judge.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name


def test_no_judge(tmp_path, monkeypatch):
    with pytest.raises(TideError, match=r"holds no judge: reinstall tide-sae, or run `python scripts/train_scenes.py"):
        load_judge(tmp_path)
    monkeypatch.setattr(judging, "DATA", tmp_path)
    with pytest.raises(TideError, match=f"^{tmp_path}/judge holds no judge"):
        load_judge()


def test_a_judge_that_is_broken_or_of_other_attributes(judge, tmp_path):
    judge.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["heads"]["colour"].reverse()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TideError, match="holds a judge of other attributes"):
        load_judge(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(TideError, match=r"config\.json does not exist"):
        load_judge(tmp_path)
    judge.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(TideError, match="not a readable safetensors file"):
        load_judge(tmp_path)


@pytest.mark.parametrize("width", [0, -8, 9, 10**12, 64])
def test_a_judge_of_another_width_than_it_says(judge, tmp_path, width):
    """Found before a network of that width is built."""
    judge.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": width}))
    with pytest.raises(TideError, match=r"; copy the whole folder again"):
        load_judge(tmp_path)


def test_the_shipped_judge_reads_renders():
    if not (judging.DATA / "judge" / "model.safetensors").is_file():
        pytest.skip("the trained judge is not in this checkout")
    held_out = list(scenes("test", 100, seed=8))
    verdicts = load_judge().read(images_of(held_out))
    for name in ATTRIBUTES:
        agreement = sum(v.agrees(s, name) for v, s in zip(verdicts, held_out, strict=True))
        assert agreement >= 90, name


def test_the_shipped_judge_finds_the_objects():
    """Pixel for pixel against the renderer: two thirds of the union at least, so that a third is at most its edge."""
    if not (judging.DATA / "judge" / "model.safetensors").is_file():
        pytest.skip("the trained judge is not in this checkout")
    held_out = list(scenes("test", 60, seed=9))
    truth = torch.stack([torch.from_numpy(render(s).regions) for s in held_out])
    found = load_judge().regions(images_of(held_out))
    for i, name in enumerate(REGIONS):
        shared, either = ((found == i) & (truth == i)).sum(), ((found == i) | (truth == i)).sum()
        assert shared / either > 0.67, name


# -- wreckage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 6])
def test_destroy_keeps_the_shape_and_the_range(n):
    found = destroy(IMAGES[:n], np.random.default_rng(0))
    assert found.shape == (n, 3, 64, 64)
    assert found.dtype == torch.float32
    assert found.min() >= -1
    assert found.max() <= 1


def test_destroy_follows_its_generator_and_leaves_its_input():
    before = IMAGES.clone()
    first, again, other = (destroy(IMAGES, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("wreck", judging._WRECKERS, ids=lambda f: f.__name__)
def test_every_way_wrecks_every_image(wreck):
    """Mean absolute change, in units of the range 2; a blend never takes the image itself for another."""
    for seed in range(20):
        for i in range(2):
            found = wreck(IMAGES[:2], i, np.random.default_rng(seed))
            assert found.shape == (3, 64, 64)
            assert (found - IMAGES[i]).abs().mean() > 0.01


def test_images_need_not_be_square():
    found = judging._shuffled(torch.rand(1, 3, 32, 64), 0, np.random.default_rng(0))
    assert found.shape == (3, 32, 64)
