"""Guards made from activations in which a concept was planted, and from captions."""

from __future__ import annotations

import pytest
import torch

from tide.editing.edits import Place
from tide.errors import TideError
from tide.guards.making import Examples, check_shown, check_told, make_guard
from tide.guards.words_fit import fit_words
from tide.interpretation import Annotated, FittedDetector

TIMESTEPS = torch.tensor([900.0, 500.0, 100.0])
CAPTIONS = (
    "a red house, near",
    "An old House on grass",
    "a house in snow, far",
    "a small tree, near",
    "a tree",
    "a red cube, near",
    "an old cone on grass",
)


def images(seed: int, width: int, *, told: bool = True) -> Annotated:
    """Half of 40 images show a house, and a third a cube; a house moves every token, unless it is not ``told``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 40, 8, width, generator=generator)
    house, cube = torch.arange(40) % 2 == 0, torch.arange(40) % 3 == 0
    for label, direction, shown in ((house, 7, told), (cube, 8, True)):
        planted = torch.randn(width, generator=torch.Generator().manual_seed(direction))
        x += shown * 0.7 * label[:, None, None] * planted
    return Annotated(TIMESTEPS, x, labels={"house": house, "cube": cube})


@pytest.fixture
def examples(sae) -> Examples:
    return Examples(images(0, sae.d_model), images(1, sae.d_model), CAPTIONS)


@pytest.fixture
def made(adapter, sae, examples):
    return make_guard(adapter, sae, examples, "house", "tree", n_latents=8)


def test_a_planted_concept_is_guarded(made, adapter):
    assert (made.concept, made.put, made.made_for.block) == ("house", "tree", 6)
    assert len(made.when.features) == 8
    assert torch.equal(made.when.timesteps, TIMESTEPS)
    held_out = images(2, adapter.d_model)
    for step, t in enumerate(TIMESTEPS.tolist()):
        x = held_out.x[step].flatten(0, 1)
        place = Place(t, token=torch.arange(8).repeat(40), image=torch.arange(40).repeat_interleave(8))
        scores = made.image_scores(made.when.scores(x, place).view(40, 8))
        right = (scores > made.when.threshold(t)) == held_out.labels["house"]
        assert right.float().mean() > 0.9


@pytest.mark.parametrize(
    ("put", "neutral", "message"),
    [
        ("House", None, "the word in its place, 'House', holds 'house' itself"),
        ("tree house", None, "the word in its place, 'tree house', holds 'house' itself"),
        ("tree", "a house", "the neutral caption, 'a house', holds 'house' itself"),
    ],
)
def test_the_concept_does_not_stand_in_for_itself(adapter, sae, examples, put, neutral, message):
    with pytest.raises(TideError, match=message):
        make_guard(adapter, sae, examples, "house", put, neutral=neutral)


def test_what_was_validated_is_counted_on_the_held_out_images(made):
    found = made.validated
    assert found["images"] == {"fit": 40, "held_out": 40, "with_the_concept": 20}
    assert found["auroc"]["least"] <= found["auroc"]["mean"] <= 1
    assert found["auroc"]["mean"] > 0.95
    assert found["flagged_at_any_step"]["with_the_concept"] > 0.9
    assert found["flagged_at_any_step"]["without"] < 0.3
    assert found["captions"] == len(CAPTIONS)
    # Of one caption by a map of two others.
    assert 0 < found["words"]["residual"] < 0.9


def test_captions_in_capitals_are_words_of_the_map(made, adapter):
    text = adapter.encode_prompts(["An old House on grass", "An old tree on grass"], 20)
    (said, wanted), real = text["encoder_hidden_states"], text["encoder_attention_mask"][0].bool()
    left = (made.words(said) - wanted)[real].square().sum() / (said - wanted)[real].square().sum()
    assert left < 0.01


def test_a_caption_with_several_forms_of_the_word_is_compared_without_case(adapter, sae, examples, monkeypatch):
    asked = []

    def fitted(adapter, captions, replaced, others):
        asked.extend(zip(captions, replaced, strict=True))
        return fit_words(adapter, captions, replaced, others)

    monkeypatch.setattr("tide.guards.making.fit_words", fitted)
    captions = ("A House by a house", "a cube")
    make_guard(adapter, sae, Examples(examples.fit, examples.held_out, captions), "house", "igloo", n_latents=4)
    assert asked == [("a house by a house", "an igloo by an igloo")]


def test_the_refuge_is_the_shortest_caption_of_what_is_put_there(made, adapter, sae, examples):
    assert made.validated["neutral_caption"] == "a tree"
    given = make_guard(adapter, sae, examples, "house", "tree", neutral="a cone", n_latents=4)
    assert given.validated["neutral_caption"] == "a cone"
    wanted = adapter.encode_prompts(["a cone"], 20)["encoder_hidden_states"][0]
    n = int(given.refuge.mask.sum())
    assert torch.allclose(given.refuge.states[:n], wanted[:n].float(), atol=1e-6)
    nowhere = make_guard(adapter, sae, examples, "house", "sphere", n_latents=4)
    assert nowhere.validated["neutral_caption"] == "sphere"


def test_what_no_latents_tell_is_refused_with_the_nearest(adapter, sae):
    examples = Examples(images(0, sae.d_model, told=False), images(1, sae.d_model, told=False), CAPTIONS)
    with pytest.raises(
        TideError, match=r"tell 'house': AUROC 0\.\d\d over .* nearest is 'cube', whose latents reach 0"
    ):
        make_guard(adapter, sae, examples, "house", "tree")
    # A label that only one of the sets shows says nothing of it.
    examples.fit.labels["cone"] = torch.arange(40) == 0
    examples.held_out.labels["cone"] = torch.zeros(40, dtype=torch.bool)
    with pytest.raises(TideError, match="tell 'house'"):
        make_guard(adapter, sae, examples, "house", "tree")


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (("a red cube", "a tree"), "no caption holds 'house'"),
        (("a house", "an old house"), "every caption holds 'house'"),
    ],
)
def test_captions_are_needed_with_and_without_the_word(adapter, sae, examples, captions, message):
    with pytest.raises(TideError, match=message):
        make_guard(adapter, sae, Examples(examples.fit, examples.held_out, captions), "house", "tree", n_latents=4)


def labelled(*shown: bool) -> Annotated:
    return Annotated(torch.tensor([500.0]), torch.zeros(1, len(shown), 2, 4), labels={"house": torch.tensor(shown)})


def test_held_out_images_show_the_concept_or_not():
    """Without both there is no AUROC, and nothing would have validated the guard."""
    fit = labelled(True, False)
    check_shown(Examples(fit, labelled(False, True), []), "house")
    with pytest.raises(TideError, match="none of the held-out images shows 'house'"):
        check_shown(Examples(fit, labelled(False, False), []), "house")
    with pytest.raises(TideError, match="every one of the held-out images shows 'house'"):
        check_shown(Examples(fit, labelled(True, True), []), "house")
    with pytest.raises(TideError, match="none of the held-out images shows 'tree'"):
        check_shown(Examples(fit, labelled(True, False), []), "tree")


def test_a_concept_is_told_by_its_figure():
    found = FittedDetector("house", None, [0.9, 0.8])
    check_told(found)
    for auroc in (0.84, float("nan")):
        with pytest.raises(TideError, match=r"no latents of this SAE tell 'house': AUROC .*; the nearest is 'tree'"):
            check_told(FittedDetector("house", None, [auroc], ("tree", 0.6)))
