"""Images by name: what is refused, and that a folder may be a string or a path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import tide
from tests.helpers.families import adapter
from tests.helpers.image_folders import make, picture
from tide.data import DEFAULT_SCENES, open_source
from tide.errors import TideError, TideWarning
from tide.pictures import to_image
from tide.sae import TIDE, TIDEConfig
from tide.scenes import images_of, scenes
from tide.training import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images = 0 must be at least 1, or None for all of them"),
        ({"images": -1}, "images = -1 must be at least 1, or None for all of them"),
        ({"scene_split": "foo"}, "scene_split 'foo' is unknown; use one of train, dev, test"),
        ({"size": (32, 32)}, "scenes are 64 x 64 pixels; leave size off"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(TideError) as raised:
        open_source("scenes", adapter("pixart"), **options)
    assert str(raised.value) == message


@pytest.mark.parametrize(("images", "expected"), [(None, DEFAULT_SCENES), (3, 3)])
def test_scenes_are_as_many_as_asked_for(images, expected):
    assert open_source("scenes", adapter("pixart"), images=images).n_images == expected


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_a_string_or_a_path(tmp_path, kind):
    to_image(images_of(list(scenes("train", 1, 0)))[0]).save(tmp_path / "one.png")
    source = open_source(kind(tmp_path), adapter("pixart"))
    assert (source.name, source.n_images) == (str(tmp_path.resolve()), 1)


def test_a_named_data_set_needs_a_number_of_images(monkeypatch):
    stream = SimpleNamespace(shown="x/y")
    monkeypatch.setattr("tide.data.open_data", lambda *_a, **_k: stream)
    with pytest.raises(TideError, match="x/y does not say how many images it has; set images to the number to read"):
        open_source("x/y", adapter("pixart"))


# -- what is read, in words and by selection -------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = make(tmp_path / "photos", *(f"{name}/{i}.png" for name in ("one", "seven") for i in range(10)))
    return folder


def read(source) -> list[str]:
    list(source)
    return [sample.name for sample in source.samples()]


@pytest.mark.parametrize(
    ("options", "described"),
    [
        ({}, "the 20 images of {}"),
        ({"images": 100}, "the 20 images of {}"),
        ({"images": 6}, "6 of the 20 images of {}"),
        ({"hold_out": 0.1}, "15 of the 20 images of {}"),
        ({"hold_out": 0.1, "images": 5}, "5 of the 20 images of {}"),
    ],
)
def test_the_images_in_words(folder, options, described):
    assert open_source(folder, adapter("pixart"), **options).described == described.format(f"{folder}/")


def test_fewer_images_than_there_might_have_been_in_words(folder):
    (folder / "one/3.png").write_text("no image")
    source = open_source(folder, adapter("pixart"), skip_unreadable=True)
    with pytest.warns(TideWarning, match="skipped"):
        list(source)
    assert source.described == f"19 of the 20 images of {folder}/"


def test_other_data_in_words():
    own = adapter("pixart")
    assert open_source("scenes", own, images=3).described == "3 images of scenes"
    assert open_source([(picture(0), "a")], own).described == "the 1 image of the list"


def test_a_number_of_images_is_a_sample_of_all_classes_and_begins_a_larger_one(folder):
    sources = [open_source(folder, adapter("pixart"), images=n, seed=1) for n in (8, 14)]
    few, more = map(read, sources)
    assert few == more[:8]
    assert {name.split("/")[0] for name in few} == {"one", "seven"}
    assert read(open_source(folder, adapter("pixart"), images=8, seed=2)) != few


def test_the_share_is_left_out_for_every_number_and_seed(folder):
    own = adapter("pixart")
    kept = set(read(open_source(folder, own, hold_out=0.2)))
    assert 10 < len(kept) < 20
    for seed, images in ((1, None), (2, 5)):
        source = open_source(folder, own, hold_out=0.2, seed=seed, images=images)
        assert set(read(source)) <= kept
        assert source.hold_out == 0.2
    assert source.notes == (
        "captions are the names of 2 folders: one, seven",
        f"{20 - len(kept)} of the 20 images of {folder}/ are held out",
    )


def test_without_fills_up_to_the_number_asked_for(folder):
    source = open_source(folder, adapter("pixart"), images=6)
    first = read(source)
    left_out = {sample.image for sample in source.samples()[:4]}
    rest = source.without(left_out)
    found = read(rest)
    assert len(found) == 6
    assert found[:2] == first[4:]
    assert not set(found) & set(first[:4])
    assert (rest.exact, rest.n_images) == (False, 6)
    assert rest.described == f"6 of the 20 images of {folder}/"
    everything = open_source(folder, adapter("pixart"))
    list(everything)
    assert read(everything.without({sample.image for sample in everything.samples()})) == []


def test_without_leaves_scenes_out():
    source = open_source("scenes", adapter("pixart"), images=5)
    list(source)
    first = source.samples()
    rest = source.without({first[1].image})
    list(rest)
    assert [sample.image for sample in rest.samples()] == [each.image for each in first if each is not first[1]]
    assert len(rest.batches.masks(4, (8, 8)).popitem()[1]) == 4


def test_scenes_are_held_out_by_their_splits():
    with pytest.raises(TideError, match="scenes have splits of their own; leave hold_out off"):
        open_source("scenes", adapter("pixart"), hold_out=0.1)


def test_images_without_a_caption_that_only_reading_shows_are_counted_once(recwarn):
    class Stored:
        """Not a list: nothing of it is read before it is asked for."""

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return picture(i), "" if i < 3 else "a tree"

    source = open_source(Stored(), adapter("pixart"))
    assert not list(recwarn)
    list(source)
    list(source)
    assert [str(each.message) for each in recwarn] == [
        "3 of the 4 images that were read have no caption and get the empty prompt; fill the captions' column"
    ]


def test_captions_as_prompts_keep_what_was_recorded_first(folder):
    own = adapter("pixart")
    prompts = open_source(folder, own).prompts((64, 64))
    recorded = dict(enumerate(prompts.samples()[3:5]))
    again = prompts.beginning_with(recorded)
    assert again.texts[:2] == prompts.texts[3:5]
    assert sorted(again.texts) == sorted(prompts.texts)
    own_order = replace(prompts, ordered=True)
    assert own_order.beginning_with(recorded) is own_order


@pytest.mark.parametrize("name", ["live", "evaluate", "caption_concepts", "make_atlas", "collect_to_disk"])
def test_what_takes_a_source_says_so_of_other_data(name, tmp_path):
    out = tmp_path / "x"
    further = {"live": TrainConfig(), "caption_concepts": ["red"], "collect_to_disk": out, "make_atlas": out}
    arguments = [adapter("pixart"), *([] if name in ("live", "collect_to_disk") else [TIDE(TIDEConfig(32, 16, 4))])]
    with pytest.raises(TideError, match=r"data of type list are given; open images with tide\.open_source\(data, adap"):
        getattr(tide, name)(*arguments, [picture()], *([further[name]] if name in further else []))
