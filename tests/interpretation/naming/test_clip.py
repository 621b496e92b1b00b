"""Names by CLIP: chosen by similarity on one half of the images, scored on the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.scorer_inputs import random_images
from tests.helpers.tiny_clip import save_tiny_clip
from tide.errors import TideError
from tide.evaluation.scorers import CLIPScorer
from tide.evaluation.statistics import auroc
from tide.interpretation.names import Score
from tide.interpretation.naming import caption_candidates, image_similarity, name_by_clip, name_by_similarity

N = 600
WORDS = ["roof", "tree", "sky"]
AT = "2026-11-28T09:00:00Z"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> CLIPScorer:
    return CLIPScorer(save_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def shows() -> torch.Tensor:
    """Which images show which of the words, each a fifth of them."""
    return noise(N, 3) < 0.2


@pytest.fixture
def similarity(shows) -> torch.Tensor:
    """Higher where a word is shown, and of "sky" much higher everywhere."""
    return 0.2 * shows + 0.1 * noise(N, 3, seed=1) + torch.tensor([0.0, 0.0, 0.9])


def test_a_latent_is_named_by_what_it_fires_on(shows, similarity):
    peaks = shows * (0.5 + noise(N, 3, seed=2))
    found = name_by_similarity(peaks[:, [2, 0, 1]], similarity, WORDS, at=AT)
    assert {latent: (entry.name, entry.by, entry.at) for latent, entry in found.items()} == {
        0: ("sky", "clip", AT),
        1: ("roof", "clip", AT),
        2: ("tree", "clip", AT),
    }
    area = float(auroc(similarity[1::2, 2:], shows[1::2, 2:])[0, 0])
    assert found[0].score == Score(area, N // 2)
    assert area > 0.95


def test_the_score_is_of_the_images_that_did_not_choose(shows, similarity):
    """Of the other half the latent fires on a fifth at random besides."""
    peaks = shows[:, :1].float()
    peaks[1::2] += noise(N // 2, 1, seed=3) < 0.2
    fires = peaks > 0
    (entry,) = name_by_similarity(peaks, similarity, WORDS, least=0.5).values()
    assert entry.name == "roof"
    assert entry.score.auroc == float(auroc(similarity[1::2, :1], fires[1::2])[0, 0])
    assert 0.6 < entry.score.auroc < 0.9
    peaks[1::2] = shows[1::2, 1:2].float()  # another word there, perfectly
    assert name_by_similarity(peaks, similarity, WORDS) == {}


def test_a_latent_that_fires_on_most_images_is_named_by_its_strongest(shows, similarity):
    """Elsewhere it is weak: a rank correlation would follow the weak peaks to "tree", as would peaks above 0."""
    weak = 0.1 + 0.3 * similarity[:, 1]
    peaks = torch.where(shows[:, 0] & (noise(N, seed=4) < 0.8), 2 + noise(N, seed=5), weak)[:, None]
    (entry,) = name_by_similarity(peaks, similarity, WORDS).values()
    assert entry.name == "roof"
    assert entry.score.auroc > 0.9


def test_where_a_latent_peaks_highest_chooses_its_name(shows, similarity):
    """It also fires, weakly and more often, on trees."""
    strong = shows[:, 0] & (noise(N, seed=4) < 0.8)
    peaks = (strong * (1 + noise(N, seed=5))).where(strong, 0.1 * shows[:, 1])[:, None]
    (entry,) = name_by_similarity(peaks, similarity, WORDS, least=0.5).values()
    assert entry.name == "roof"
    fires = peaks > 0
    assert entry.score.auroc == float(auroc(similarity[1::2, :1], fires[1::2])[0, 0])


def test_of_candidates_that_tell_the_strongest_images_one_tells_the_others_too():
    """Each image has a rank; the first candidate is lost where the latent is weaker."""
    rank = torch.arange(N) * 7 % N
    peaks = (rank >= 0.6 * N) * (1 + rank / N)
    lost = torch.where(rank >= 0.8 * N, rank.float(), noise(N))
    similarity = torch.stack([lost, rank.float()], dim=1)
    (entry,) = name_by_similarity(peaks[:, None], similarity, ["tile", "roof"]).values()
    assert (entry.name, entry.score.auroc) == ("roof", 1.0)


@pytest.mark.parametrize("n", [0, 19, N - 19, N], ids=["never", "rarely", "nearly always", "always"])
def test_too_few_images_name_nothing(similarity, n):
    peaks = (torch.arange(N) < n).float()
    assert name_by_similarity(peaks[:, None], similarity + 9 * peaks[:, None], WORDS) == {}


def test_a_thousand_latents_at_random_have_no_names(similarity):
    peaks = noise(N, 1000, seed=6) * (noise(N, 1000, seed=7) < 0.3)
    assert name_by_similarity(peaks, similarity, WORDS, least=0.5) == {}


def test_pieces_give_the_same(shows, similarity):
    peaks = shows * (0.5 + noise(N, 3, seed=2))
    pieces = (([latent], peaks[:, [latent]]) for latent in (2, 0, 1))
    assert name_by_similarity(pieces, similarity, WORDS, at=AT) == name_by_similarity(peaks, similarity, WORDS, at=AT)


def test_candidates_are_words_of_some_captions():
    captions = ["A red house", "a red roof", "a blue house", "a tree"]
    assert caption_candidates(captions) == ["blue", "house", "red", "roof", "tree"]
    assert caption_candidates(captions, most=2) == ["house", "red"]
    assert caption_candidates([]) == []


def test_similarity_is_clips_own(clip):
    images, words = random_images(5), ["roof", "red"]
    found = image_similarity(iter([images[:3], images[3:]]), words, clip)
    texts = clip.embed_texts(["a photo of roof", "a photo of red"])
    expected = F.cosine_similarity(clip.embed_images(images)[:, None], texts[None], dim=2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(image_similarity(images, words, clip), expected)
    alone = image_similarity(images, words, clip, template="{}")
    torch.testing.assert_close(alone[:, 0], clip.similarity(images, ["roof"] * 5))


def test_a_latent_of_clips_own_similarity_gets_its_name(clip):
    """Among words of the captions and one that is given."""
    images = random_images(120, size=32)
    captions = ["palm tree", "blue snow", ""] * 40
    similarity = image_similarity(images, ["red"], clip)[:, 0]
    strong = similarity >= similarity.quantile(0.7)
    peaks = (strong * (1 + similarity))[:, None]
    found = name_by_clip(peaks, images, captions, clip, words=["red", "snow"], at=AT)
    assert (found[0].name, found[0].score) == ("red", Score(1.0, 60))


def test_what_cannot_name(clip, similarity):
    peaks, images = torch.rand(N, 1), random_images(2)
    with pytest.raises(TideError, match=r"1 captions are not one for each of 2 images; give '' for none"):
        name_by_clip(peaks, images, ["a"], clip, words=["b"])
    with pytest.raises(TideError, match=r"give \[images, latents\] of 2 images"):
        name_by_clip(peaks, images, ["", ""], clip, words=["b"])
    with pytest.raises(TideError, match="there are no candidates for names; give captions with words, or words"):
        name_by_clip(peaks, images, ["", ""], clip)
    with pytest.raises(TideError, match=r"the candidate 'a\\nb' cannot be a name \(name is"):
        name_by_clip(peaks, images, ["", ""], clip, words=["a\nb"])
    with pytest.raises(TideError, match="a candidate is empty; give words"):
        name_by_similarity(peaks, similarity[:, :1], [""])
    with pytest.raises(TideError, match=r"the template 'x' has no place for a candidate; write \{\} into it"):
        image_similarity(images, ["b"], clip, template="x")
    with pytest.raises(TideError, match="there are no images to name latents by; give at least one"):
        image_similarity([], ["b"], clip)
    with pytest.raises(TideError, match=r"similarity \[600, 3\] must be \[images, 2 candidates\]"):
        name_by_similarity(peaks, similarity, WORDS[:2])
