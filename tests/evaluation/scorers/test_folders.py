"""Scores of two folders of pictures: which are pairs, in what batches they are read, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.image_folders import save
from tests.helpers.scored_sets import ColourReader, MeanDistance
from tide.errors import TideError
from tide.evaluation.scorers import Batch, FolderPair, SetScorers, StubScorer, score_folders, score_sets
from tide.images import open_picture
from tide.images.tensors import to_tensor


class Watched(StubScorer):
    """Remembers the shapes of the batches that it compared."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def distance(self, images: Tensor, references: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return super().distance(images, references)


@pytest.fixture
def folders(tmp_path):
    """Four names in common; a fifth picture on either side."""
    before, after = tmp_path / "a", tmp_path / "b"
    for i, name in enumerate(("1.png", "2.png", "in/3.png", "in/4.png")):
        save(before / name, (40 * i, 0, 100), (12, 8))
        save(after / name, (40 * i, 200, 100), (12, 8))
    save(before / "5.png", (9, 9, 9), (12, 8))
    save(after / "6.png", (0, 9, 90), (12, 8))
    return before, after


def read(folder, *names: str) -> Tensor:
    return torch.stack([to_tensor(open_picture(folder / name), (8, 12)) for name in names])


def test_pictures_of_one_name_are_pairs_and_the_rest_counts_for_the_sets(folders):
    before, after = folders
    scorers = SetScorers(inception=MeanDistance(), clip=StubScorer(), lpips=StubScorer(), judge=ColourReader())
    found = score_folders(before, after, scorers, batch_size=3)
    shared = ("1.png", "2.png", "in/3.png", "in/4.png")
    pairs = [(Batch(read(before, *shared)), Batch(read(after, *shared)))]
    rest = [Batch(read(before, "5.png"))], [Batch(read(after, "6.png"))]
    again = SetScorers(inception=MeanDistance(), clip=StubScorer(), lpips=StubScorer(), judge=ColourReader())
    expected = score_sets(pairs, *rest, scorers=again)
    assert found["images"] == {"before": 5, "after": 5, "pairs": 4}
    assert found["fid"] == pytest.approx(expected["fid"], rel=1e-5)
    assert found["lpips"]["mean"] == pytest.approx(expected["lpips"]["mean"], rel=1e-5)
    assert found["clip_image"]["mean"] == pytest.approx(expected["clip_image"]["mean"], rel=1e-5)
    assert found["attributes"] == expected["attributes"]


def test_batches_are_no_larger_than_asked_and_of_one_size(folders):
    before, after = folders
    for folder in folders:
        save(folder / "in/35.png", (1, 2, 3), (20, 8))
    watched = Watched()
    score_folders(before, after, SetScorers(lpips=watched), batch_size=2)
    assert watched.shapes == [(2, 3, 8, 12), (1, 3, 8, 12), (1, 3, 8, 20), (1, 3, 8, 12)]


def test_prompts_go_with_their_pictures(folders, tmp_path):
    before, after = folders
    texts = {"1.png": "one", "2.png": "two", "5.png": "three", "in/3.png": "four", "in/4.png": "five"}
    prompts = tmp_path / "p.csv"
    rows = [*texts.items(), ("6.png", "six")]
    prompts.write_text("file_name,text\n" + "".join(f"{name},{text}\n" for name, text in rows))
    found = score_folders(before, after, SetScorers(clip=StubScorer()), prompts=prompts)["clip_text"]
    expected = StubScorer().similarity(read(before, *texts), list(texts.values()))
    assert found["before"]["mean"] == pytest.approx(float(expected.mean()), abs=1e-6)
    assert (found["after"]["images"], found["change"]["images"]) == (5, 4)


def test_a_text_of_prompts_is_for_folders_of_the_same_names_or_of_none_in_common(folders, tmp_path):
    """Line 3 would be of "5.png" before and of "6.png" after, and with it all that come between other names."""
    before, after = folders
    text = tmp_path / "p.txt"
    text.write_text("one\ntwo\nthree\nfour\nfive\n")
    with pytest.raises(TideError) as caught:
        score_folders(before, after, SetScorers(clip=StubScorer()), prompts=text)
    said = "share names and differ in others, such as 5.png, so a text of prompts cannot fit both; give a list by name"
    assert str(caught.value) == f"{before}/ and {after}/ {said} (.jsonl, .csv, .parquet)"
    (before / "5.png").unlink()
    (after / "6.png").unlink()
    text.write_text("one\ntwo\nthree\nfour\n")
    assert (
        score_folders(before, after, SetScorers(clip=StubScorer()), prompts=text)["clip_text"]["change"]["images"] == 4
    )


def test_scores_of_a_scorer_that_was_used_before(folders):
    scorers = SetScorers(inception=MeanDistance())
    first, second = (score_folders(*folders, scorers)["fid"] for _ in range(2))
    assert first == second


def test_pairs_of_other_sizes_are_refused(folders):
    before, after = folders
    save(after / "2.png", size=(16, 9))
    with pytest.raises(TideError) as caught:
        score_folders(before, after, SetScorers(lpips=StubScorer()))
    assert str(caught.value) == f"2.png is 12 x 8 in {before}/ and 16 x 9 in {after}/; give both in one size"


def test_lpips_needs_common_names(folders, tmp_path):
    before, _ = folders
    save(tmp_path / "c/other.png")
    with pytest.raises(TideError) as caught:
        score_folders(before, tmp_path / "c", SetScorers(lpips=StubScorer()))
    said = "have no file name in common, and LPIPS compares pairs; name the pictures alike"
    assert str(caught.value) == f"{before}/ and {tmp_path}/c/ {said}"
    assert score_folders(before, tmp_path / "c", SetScorers(clip=StubScorer()))["images"]["pairs"] == 0


@pytest.mark.parametrize(
    "scorers", [{"inception": MeanDistance()}, {"judge": ColourReader()}], ids=["inception", "judge"]
)
def test_fid_needs_two_pictures_of_each(folders, tmp_path, scorers):
    before, _ = folders
    save(tmp_path / "c/1.png", size=(12, 8))
    with pytest.raises(TideError) as caught:
        score_folders(before, tmp_path / "c", SetScorers(**scorers))
    assert str(caught.value) == f"{tmp_path}/c/ holds 1 picture and FID needs 2; add some"
    assert score_folders(before, tmp_path / "c", SetScorers(lpips=StubScorer()))["images"]["pairs"] == 1


def test_folders_that_are_missing_or_empty(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TideError, match=r"empty holds no images; add some \(.png"):
        FolderPair.opened(folders[0], tmp_path / "empty")
    with pytest.raises(TideError, match="none is not a folder; give one that holds images"):
        FolderPair.opened(tmp_path / "none", folders[1])


def test_nothing_is_read_without_a_scorer(folders):
    (folders[0] / "1.png").write_bytes(b"damaged")
    with pytest.raises(TideError, match="nothing scores the images"):
        score_folders(*folders, SetScorers())
    with pytest.raises(TideError, match=r"1.png is not a readable image"):
        score_folders(*folders, SetScorers(clip=StubScorer()))
