"""An index that is open, and folders that hold none or a damaged one: one line each."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.synthetic_index import synthetic_index
from tests.helpers.indexes import IMAGES, LATENTS, built, scenes, untrained
from tide.errors import TideError
from tide.index import Index
from tide.index.layout import BY_LATENT, CODES, FACTS, FIRING, HEIGHTS, PICTURES, PLACE, TABLES, index_of


@pytest.fixture(scope="module")
def whole(adapter, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    built(adapter, run, source=scenes(adapter, IMAGES, IMAGES))
    return run


@pytest.fixture(scope="module")
def others(adapter, tmp_path_factory) -> dict[str, Path]:
    """Indexes of other figures."""
    root = tmp_path_factory.mktemp("others")
    source = scenes(adapter, IMAGES, IMAGES)
    built(adapter, root / "latents", model=untrained(adapter, 48), source=source)
    built(adapter, root / "images", source=scenes(adapter, 3, 3))
    built(adapter, root / "timesteps", source=source, timesteps=torch.tensor([500]))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of an index to damage."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def everything(index: Index) -> None:
    """Asks for all that the page asks for."""
    index.columns(), index.concepts(), index.search("tree"), index.sheet(0)
    for name in ("frequency", "mean", "mean_map", "sketch", "fires", "fires_cosine", "writes", "writes_cosine"):
        index.rows(name)[:]
    for kind in ("top", "drawn"):
        for part in ("images", "values", "maps"):
            index.rows(f"{kind}_{part}")[:]
    for i in range(index.n_images):
        index.image(i), index.place(i), index.texts([i])
        assert index.picture(i).startswith(b"\xff\xd8")
    for latent in range(index.n_latents):
        index.firing(latent)


# -- whole ------------------------------------------------------------------------------------------------------


def test_a_whole_one(whole):
    index = Index(whole)
    everything(index)
    assert (index.n_latents, index.n_images) == (LATENTS, IMAGES)
    place = index.place(3)
    assert place.latents.shape == place.heights.shape == (2, 64, PLACE)
    assert (place.latents.dtype, place.heights.dtype) == (np.int32, np.float16)
    assert index.texts([2, 0, 99]) == {i: index.image(i) for i in (0, 2)}
    assert index.image(4)["name"] == "scene 4"
    with Image.open(index.sheet(0)) as sheet:
        assert sheet.size == (16 * 64, 64)


def test_pictures_are_of_their_images(whole, adapter, tmp_path):
    index = Index(whole)
    ((images, captions),) = list(scenes(adapter, IMAGES, IMAGES))
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        (tmp_path / "x.jpg").write_bytes(index.picture(i))
        shown = torch.from_numpy(np.asarray(Image.open(tmp_path / "x.jpg"))).permute(2, 0, 1) / 127.5 - 1
        assert (shown - image).abs().mean() < 0.05
        assert index.image(i)["caption"] == caption


def test_several_threads_at_once(whole):
    index, errors = Index(whole), list[BaseException]()
    expected = [index.place(i).latents for i in range(IMAGES)]

    def reads() -> None:
        try:
            everything(index)
            for i in range(IMAGES):
                assert (index.place(i).latents == expected[i]).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=reads) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_search_finds_images_by_words_of_captions_and_latents_by_concepts(run):
    with closing(sqlite3.connect(index_of(run) / TABLES)) as db, db:
        db.execute("INSERT INTO latent_text (rowid, text) VALUES (7, 'striped fur part')")
    index = Index(run)
    words = {i: set(index.image(i)["caption"].replace(",", "").split()) for i in range(IMAGES)}
    told = [word for word in words[5] if not all(word in each for each in words.values())]
    assert told
    for word in told:
        expected = {i for i, each in words.items() if any(other.startswith(word) for other in each)}
        assert set(index.search(word)["images"]) == expected
    assert index.search("stri FUR") == {"latents": [7], "images": []}
    assert index.search("scene 6")["images"] == [6]
    for nothing in ("", '"*(', " - "):
        assert index.search(nothing) == {"latents": [], "images": []}
    assert index.search('" OR NEAR( * -') == {"latents": [], "images": []}


@pytest.mark.parametrize("latent", [-1, LATENTS, 10**30])
def test_latents_that_do_not_exist(whole, latent):
    for ask in (Index(whole).check_latent, Index(whole).firing):
        with pytest.raises(TideError, match=rf"latent {latent} does not exist; there are 0\.\.63$"):
            ask(latent)


@pytest.mark.parametrize("image", [-1, IMAGES, 10**30])
def test_images_that_do_not_exist(whole, image):
    index = Index(whole)
    for ask in (index.check_image, index.image, index.picture, index.place):
        with pytest.raises(TideError, match=rf"image {image} does not exist; there are 0\.\.6$"):
            ask(image)


@pytest.mark.parametrize("number", [-1, 1])
def test_sheets_that_do_not_exist(whole, number):
    with pytest.raises(TideError, match=f"there is no sheet {number}"):
        Index(whole).sheet(number)


# -- none -------------------------------------------------------------------------------------------------------


def test_a_folder_without_an_index(tmp_path):
    with pytest.raises(TideError, match=r"has no index; make the index again \(tide browse RUN --index"):
        Index(tmp_path)
    with pytest.raises(TideError, match="has no index"):
        Index(tmp_path / "none")


def test_one_that_is_not_whole(run):
    (index_of(run) / FACTS).unlink()
    with pytest.raises(TideError, match="has no index"):
        Index(run)


@pytest.mark.parametrize("name", [BY_LATENT, CODES, HEIGHTS, FIRING, TABLES])
def test_a_file_is_missing(run, name):
    (index_of(run) / name).unlink()
    with pytest.raises(TideError, match=rf"{name} does not exist; make the index again"):
        Index(run)


def facts(run: Path, **changes: object) -> None:
    path = index_of(run) / FACTS
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: facts(run, format="tide-index/0"), r"index\.json is of another version, or no index; make the"),
        (lambda run: (index_of(run) / FACTS).write_text("[]"), r"index\.json is of another version, or no index"),
        (lambda run: (index_of(run) / FACTS).write_text("{"), r"index\.json is not valid JSON"),
        (lambda run: facts(run, n_latents="64"), r"n_latents is '64' and must be a whole number; the file is damaged"),
        (lambda run: facts(run, map=None), r"map is None and must be a list"),
        (lambda run: facts(run, n_images=8), "is of two different indexes; make the index again"),
        (lambda run: facts(run, n_latents=63), "is of two different indexes"),
        (lambda run: facts(run, map=[4, 16]), "is of two different indexes"),
        (lambda run: facts(run, timesteps=[1.0]), "is of two different indexes"),
    ],
)
def test_facts_of_another(run, change, message):
    change(run)
    with pytest.raises(TideError, match=message) as error:
        Index(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ("latents", [BY_LATENT, FIRING, TABLES, FACTS]),
        ("images", [CODES, HEIGHTS, TABLES, FACTS]),
        ("timesteps", [CODES, HEIGHTS, BY_LATENT, FACTS]),
    ],
)
def test_files_of_two_indexes(run, others, other, names):
    for name in names:
        mixed = run.with_name(name)
        shutil.copytree(run, mixed)
        shutil.copy(index_of(others[other]) / name, index_of(mixed) / name)
        with pytest.raises(TideError, match="is of two different indexes; make the index again"):
            Index(mixed)


def changed(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return apply


def executed(sql: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with closing(sqlite3.connect(folder / TABLES)) as db, db:
            db.execute(sql)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / BY_LATENT, 90_000), "is cut short or damaged"),
        (lambda folder: os.truncate(folder / CODES, 9_000), "is cut short or damaged"),
        (lambda folder: os.truncate(folder / FIRING, 3), "is not a readable safetensors file with starts"),
        (lambda folder: os.truncate(folder / PICTURES, 3_000), r"pictures\.bin is cut short; make the index again"),
        (lambda folder: (folder / PICTURES).unlink(), r"pictures\.bin cannot be read \(No such file or directory\)"),
        (
            lambda folder: (folder / TABLES).write_bytes(b"not a database" * 99),
            r"sqlite cannot be read \(file is not a d",
        ),
        (lambda folder: (folder / TABLES).write_bytes(b""), r"sqlite cannot be read \(no such table: latents\)"),
        (lambda folder: os.truncate(folder / TABLES, 9_000), "sqlite cannot be read"),
        (executed("DROP TABLE latent_text"), r"sqlite cannot be read \(no such table: latent_text\)"),
        (executed("UPDATE images SET image = 99 WHERE image = 2"), r"sqlite lacks image 2; make the index again"),
        (changed(BY_LATENT, lambda each: each.pop("sketch")), "is not a readable safetensors file with sketch"),
        (changed(BY_LATENT, lambda each: each.update(mean=each["mean"][1:].clone())), "is of two different indexes"),
        (changed(FIRING, lambda each: each["starts"][3:4].fill_(10**9)), r"firing\.safetensors is damaged"),
        (changed(FIRING, lambda each: each["starts"][3:4].fill_(-1)), r"firing\.safetensors is damaged"),
        (changed(FIRING, lambda each: each.update(peaks=each["peaks"][1:].clone())), r"firing\.safetensors is damaged"),
        (lambda folder: shutil.rmtree(folder / "sheets"), "there is no sheet 0"),
    ],
)
def test_damaged_files(run, damage, message):
    damage(index_of(run))
    with pytest.raises(TideError, match=message) as error:
        everything(Index(run))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [PICTURES, TABLES, FIRING, BY_LATENT])
def test_files_that_are_deleted_while_it_is_open(run, name):
    index = Index(run)
    (index_of(run) / name).unlink()
    with pytest.raises(TideError, match=rf"{name} (cannot be read|does not exist).*; make the index again") as error:
        everything(index)
    assert "\n" not in str(error.value)


def test_places_are_read_on_after_their_files_are_deleted(run, whole):
    index = Index(run)
    shutil.rmtree(index_of(run))
    assert (index.place(3).latents == Index(whole).place(3).latents).all()


def test_a_search_finds_all(tmp_path, monkeypatch):
    """Also thousands, which the page then sorts and filters."""
    monkeypatch.setattr("benchmarks.synthetic_index.WORDS", ["roof"])
    synthetic_index(tmp_path, n_latents=9000, n_images=3)
    index = Index(tmp_path)
    named = index.query("SELECT COUNT(*) AS n FROM latents WHERE concept IS NOT NULL")[0]["n"]
    assert named > 2000
    assert len(index.search("roof")["latents"]) == named
