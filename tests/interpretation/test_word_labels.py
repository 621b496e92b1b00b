"""Words of captions as labels: chosen on one half of the images, measured on the other, and none by chance."""

from __future__ import annotations

import pytest
import torch

from tide.evaluation.statistics import auroc
from tide.images.words import concept_of, folded, holds
from tide.interpretation.word_labels import MOST_WORDS, label_words

N = 200


def captions(seed: int = 0, n: int = N) -> list[str]:
    """Two words, each of three or of two at random, in odd spellings."""
    generator = torch.Generator().manual_seed(seed)
    colour, thing = (torch.randint(k, (n,), generator=generator).tolist() for k in (3, 2))
    colours, things = ("RED", "blue", "größe"), ("house.", '"tree"')
    return [f"A {colours[c]}, {things[t]}" for c, t in zip(colour, thing, strict=True)]


def shows(word: str, texts: list[str]) -> torch.Tensor:
    return torch.tensor([word in text.lower() for text in texts])


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_latent_is_labelled_with_the_word_that_it_tells():
    texts = captions()
    told = [shows("red", texts), shows("tree", texts), shows("größe", texts)]
    peaks = torch.stack([mask + 0.6 * noise(N, seed=i) for i, mask in enumerate(told)] + [noise(N)], dim=1)
    labels = label_words(peaks, texts)
    assert [label and (label.concept, label.level) for label in labels] == [
        ("red", "caption"), ("tree", "caption"), ("grösse", "caption"), None,
    ]  # fmt: skip
    assert labels[0].auroc == 1.0


@pytest.mark.parametrize(
    ("shown", "other", "word"),
    [
        ("I don\u2019t see it", "I see it", "don't"),
        ("一只猫在草地上", "一只狗在草地上", "猫"),
        ("red_house", "blue-house", "red"),
        ("a cafe\u0301", "a house", "caf\u00e9"),
    ],
)
def test_a_label_is_a_word_that_concepts_finds(shown, other, word):
    told = torch.rand(N, generator=torch.Generator().manual_seed(0)) < 0.5
    texts = [shown if each else other for each in told]
    (label,) = label_words(told[:, None].float(), texts)
    assert label.concept == word
    assert [holds(folded(text), concept_of(word)) for text in texts] == told.tolist()


def test_images_show_a_word_where_concepts_finds_it():
    """Also in "cat's", which is a word of its own."""
    texts = [("a cat", "a house", "a cat's paw", "a house")[i % 4] for i in torch.randperm(N).tolist()]
    (label,) = label_words(shows("cat", texts)[:, None].float(), texts)
    assert (label.concept, label.auroc) == ("cat", 1.0)


def test_the_score_is_of_the_images_that_did_not_choose():
    """The word fits every second image perfectly and the others with noise."""
    texts = captions()
    red = shows("red", texts)
    peaks = red + 1.5 * noise(N)
    peaks[::2] = red[::2].float()
    (label,) = label_words(peaks[:, None], texts)
    assert label.concept == "red"
    assert label.auroc == float(auroc(peaks[1::2, None], red[1::2, None]))
    assert 0.8 < label.auroc < 1
    peaks[1::2] = shows("tree", texts)[1::2].float()  # another word there, perfectly
    assert label_words(peaks[:, None], texts) == (None,)


def test_latents_that_tell_nothing_have_no_label():
    """A thousand at random, and one that never fires."""
    peaks = torch.cat([noise(N, 1000), torch.zeros(N, 1)], dim=1)
    assert label_words(peaks, captions()) == (None,) * 1001


@pytest.mark.parametrize("n_red", [19, 20], ids=["too few", "enough"])
def test_a_rare_word_labels_nothing(n_red):
    """Ten images of each half are needed, with the word as well as without."""
    red = torch.arange(N) < n_red
    rare = ["a red house" if each else "a house" for each in red]
    common = ["a house" if each else "a red house" for each in red]
    for texts, peaks in ((rare, red.float()), (common, 1 - red.float())):
        labels = label_words(peaks[:, None], texts)
        assert (labels and labels[0].concept) == ("red" if n_red == 20 else None)


def test_few_images_need_a_higher_auroc():
    """0.8 is not far above chance where ten images show the word."""
    texts = ["a red house" if i < 20 else "a house" for i in range(40)]
    mask = shows("red", texts)
    peaks = torch.zeros(40)
    peaks[mask] = 1.0
    peaks[torch.arange(40) >= 32] = 1.0  # 8 of 20 images without the word
    assert float(auroc(peaks[1::2, None], mask[1::2, None])) == pytest.approx(0.8)
    assert label_words(peaks[:, None], texts) == (None,)


@pytest.mark.parametrize(
    "texts",
    [[], [""] * N, ["the same words"] * N, [f"word{i}" for i in range(N)]],
    ids=["none", "empty", "same", "all differ"],
)
def test_captions_without_a_word_that_separates(texts):
    assert label_words(torch.rand(len(texts), 3), texts) is None


def test_the_most_frequent_words_of_many_are_tried():
    n_words = MOST_WORDS + 500
    held = noise(60, n_words, seed=3) < 0.5
    texts = [" ".join(f"w{i}" for i in row.nonzero().flatten().tolist()) for row in held]
    assert label_words(held[:, :1].float(), texts) is not None
