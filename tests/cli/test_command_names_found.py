"""``tide names`` on a checkpoint with an index: names that it finds, and how it says so."""

from __future__ import annotations

import json
import shutil
from _thread import interrupt_main
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.planted_index import EXACT, N_IMAGES, N_LATENTS, SILENT, WORD, planted_index, showing
from tests.helpers.tiny_clip import save_tiny_clip
from tests.helpers.vision_server import Asked, Reply, vision_server
from tide.cli.names_found import most_active
from tide.index import Index
from tide.index.naming import pictures
from tide.interpretation.names import Entry, Names, Score
from tide.sae import TIDE

AT = "2026-11-28T09:00:00Z"


@pytest.fixture(scope="module")
def indexed(adapter, tmp_path_factory) -> Path:
    return planted_index(adapter, tmp_path_factory.mktemp("indexed")).run


@pytest.fixture
def own(indexed, tmp_path) -> Path:
    """A checkpoint with an index and without names."""
    return shutil.copytree(indexed, tmp_path / "sae")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("TIDE_VISION_KEY", raising=False)


def lines(folder: Path) -> list[str]:
    path = folder / "names.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_words_of_captions(cli, own):
    result = cli("names", own, "--captions", "--list")
    first, *rest = result.out.splitlines()
    assert result.code == 0, result.err
    found = Names(own / "names.jsonl").read()
    assert first == f"{len(found)} of {N_LATENTS} latents named by captions, median AUROC 1.00."
    assert rest[0] == f"      {EXACT}   {WORD} (captions, AUROC 1.00 on {N_IMAGES // 2} images)"
    assert SILENT not in found


def test_names_are_found_again_only_where_they_changed(cli, own):
    cli("names", own, "--captions")
    before = lines(own)
    assert cli("names", own, "--captions").code == 0
    assert lines(own) == before
    names = Names(own / "names.jsonl")
    names.add([Entry(SILENT, by, "2026-01-01T00:00:00Z", "roof") for by in ("captions", "clip", "person:anna")])
    cli("names", own, "--captions")
    # What captions no longer say is taken back, and nobody else's names are.
    assert [each.by for each in names.read()[SILENT].all] == ["clip", "person:anna"]


def test_labels_by_masks(cli, own):
    result = cli("names", own, "--concepts", "--captions")
    assert result.out.splitlines()[0] == f"2 of {N_LATENTS} latents named by concepts, without a score."
    assert {each.by for each in Names(own / "names.jsonl").read()[EXACT].all} == {"concepts", "captions"}


def test_some_of_the_labels_have_a_score(cli, own, monkeypatch):
    monkeypatch.setattr("tide.index.naming._held_out", lambda index, of: {EXACT: Score(0.9, 30)})
    result = cli("names", own, "--concepts")
    assert result.out == f"2 of {N_LATENTS} latents named by concepts, median AUROC 0.90 of 1 of them.\n"


def test_clip_chooses_among_words_of_captions_and_of_a_file(cli, own, clip, tmp_path, monkeypatch):
    seen = []

    def name_by_similarity(peaks, similarity, candidates, **options):
        seen.append((sum(len(latents) for latents, _ in peaks), similarity.shape, candidates))
        return {3: Entry(3, "clip", AT, candidates[-1], score=Score(0.75, 32))}

    monkeypatch.setattr("tide.interpretation.naming.clip.name_by_similarity", name_by_similarity)
    words = tmp_path / "words.txt"
    words.write_text("roof tile\n\n  sky \nroof tile\n")
    result = cli("names", own, "--clip", clip, "--words", words)
    assert (result.code, result.out) == (0, f"1 of {N_LATENTS} latents named by clip, median AUROC 0.75.\n")
    ((n_latents, shape, candidates),) = seen
    assert candidates[-2:] == ["roof tile", "sky"]
    assert WORD in candidates
    assert (n_latents, shape) == (N_LATENTS, (N_IMAGES, len(candidates)))


def test_clip_names_by_itself(cli, own, clip):
    """A random CLIP finds what it finds: the line and the file agree."""
    result = cli("names", own, "--clip", clip)
    assert result.code == 0, result.err
    assert result.out.startswith(f"{len(Names(own / 'names.jsonl').read())} of {N_LATENTS} latents named by clip")


@pytest.fixture
def sees(indexed) -> Callable[[Asked], Reply]:
    """A model that knows the pictures of the index and their captions."""
    index = Index(indexed)
    known, shows = [each.astype(np.float32) for each in pictures(index)], showing(index)

    def shown(picture: np.ndarray) -> bool:
        side = known[0].shape[0]
        factor = picture.shape[0] // side
        small = picture.reshape(side, factor, side, factor, 3).mean((1, 3))
        return bool(shows[np.argmin([np.abs(small - each).mean() for each in known])])

    def answer(asked: Asked) -> Reply:
        if "fits" in asked.text:
            return Reply(json.dumps({"fits": [i for i, each in enumerate(asked.pictures, 1) if shown(each)]}))
        return Reply(json.dumps({"name": "white ground"}))

    return answer


def test_a_model_that_sees_names_a_latent_once(cli, own, sees, monkeypatch):
    monkeypatch.setenv("TIDE_VISION_KEY", "secret")
    with vision_server(sees) as (address, got):
        words = ("names", own, "--vision", address, "--vision-model", "seer", "--latents", f"{EXACT},{SILENT}")
        result = cli(*words)
        assert result.code == 0, result.err
        assert result.out.splitlines() == [
            f"latent {SILENT} gets no name by seer: only 0 images of a half show it firing, or silent; 4 are needed",
            "1 of 2 latents named by model:seer, median AUROC 1.00.",
        ]
        assert (len(got), {each.headers["Authorization"] for each in got}) == (2, {"Bearer secret"})
        shown = Names(own / "names.jsonl").read()[EXACT].shown
        assert (shown.name, shown.by, shown.score) == ("white ground", "model:seer", Score(1.0, 20))
        again = cli(*words)
        assert again.out.splitlines()[-1] == "0 of 1 latent named by model:seer. 1 had been named by it before."
        assert len(got) == 2
    assert "secret" not in "".join(lines(own))


def test_the_most_active_latents_are_asked_of(cli, own, sees):
    index = Index(own)
    share = index.rows("frequency")[:].mean(1)
    expected = sorted(range(N_LATENTS), key=lambda latent: (-share[latent], latent))[:3]
    assert most_active(index, 3) == expected
    with vision_server(sees) as (address, _):
        result = cli("names", own, "--vision", address, "--vision-model", "seer", "--top", 3)
    assert result.code == 0, result.err
    assert " of 3 latents named by model:seer" in result.out
    assert set(Names(own / "names.jsonl").read()) <= set(expected)


def test_an_interruption_keeps_what_is_written(cli, own, sees):
    """Ctrl-C while the second latent is asked of."""
    asked = []

    def answer(each: Asked) -> Reply:
        asked.append(each)
        if len(asked) == 3:
            interrupt_main()
        return sees(each)

    with vision_server(answer) as (address, _):
        result = cli("names", own, "--vision", address, "--vision-model", "seer", "--latents", "0,3,4,5")
    assert result.code == 130
    assert "tide: interrupted; the names are whole; what is missing is added by the same command" in result.err
    assert list(Names(own / "names.jsonl").read()) == [0]


def test_an_address_where_nothing_answers_is_asked_once(cli, own):
    with vision_server(lambda asked: Reply("")) as (address, _):
        pass  # it has gone
    result = cli("names", own, "--vision", address, "--vision-model", "seer", "--latents", "0,3")
    assert result.code == 2
    assert result.err.startswith("tide: error: latent 0 gets no name by seer: it cannot be reached (")
    assert result.err.endswith(f"; check the address {address}, and give the same command again\n")
    assert (result.err.count("\n"), result.out, lines(own)) == (1, "", [])


def test_labels_that_are_words_of_captions_are_refused(cli, own):
    path = own / "index" / "index.json"
    path.write_text(path.read_text().replace('"masks"', '"captions"'))
    result = cli("names", own, "--concepts", "--captions")
    assert "has no labels by masks, only rendered scenes have; find names by captions instead\n" in result.err
    assert (result.code, result.out, lines(own)) == (2, "", [])


def test_nothing_is_asked_of_the_network_without_vision(cli, own, clip, monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert cli("names", own, "--captions", "--concepts", "--clip", clip, "--list").code == 0


def test_what_cannot_be_found(cli, own, checkpoint, clip, tmp_path):
    def refused(*words: object) -> str:
        result = cli("names", *words)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        return result.err

    for way in (["--captions"], ["--concepts"], ["--clip", clip], ["--vision", "http://localhost/v1"]):
        way = [*way, "--vision-model", "m"] if way[0] == "--vision" else way
        error = refused(checkpoint, *way)
        assert "has no index; make the index again (tide browse RUN --index, or tide atlas --index)" in error
    assert "the model at --vision is not named; give --vision-model" in refused(own, "--vision", "http://localhost/v1")
    seer = ["--vision", "http://localhost/v1", "--vision-model", "m"]
    assert "latent 64 does not exist; there are 0..63" in refused(own, *seer, "--latents", "64")
    assert "is not an address" in refused(own, "--vision", "here", "--vision-model", "m", "--captions")
    assert "--top" in refused(own, *seer, "--top", "3", "--latents", "2")
    assert "none is not a folder" in refused(own, "--clip", tmp_path / "none", "--captions")
    words = tmp_path / "words"
    words.write_text("\n")
    assert "words holds no words; write one a line" in refused(own, "--clip", clip, "--words", words)
    assert lines(own) == []


def test_an_index_of_another_checkpoint_is_refused(cli, own):
    model = TIDE.from_pretrained(own)
    model.b_dec.data += 1
    model.save_pretrained(own)
    result = cli("names", own, "--captions")
    error = f"tide: error: the index of {own} is of other weights; make the index again (tide browse --index)\n"
    assert (result.code, result.err, lines(own)) == (2, error, [])
