"""Concepts on data where the answer was planted."""

from __future__ import annotations

import pytest
import torch

from tide.errors import TideError
from tide.interpretation import (
    Annotated,
    concept_scores,
    find_concepts,
    mean_latents,
    pooled_latents,
)
from tide.interpretation.concepts import best_iou, iou
from tide.sae import TIDE, ModulationConfig, Position, TIDEConfig

CONCEPTS = ["roof", "near", "snow"]
PLANTED = {"roof": 7, "near": 2, "snow": 11}


def planted(seed: int, *, sign: float = 1.0, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse noise in 15 features; each concept raises one of them by 2, ``snow``'s by ``sign`` times that."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(rows, 3, generator=generator) < torch.tensor([0.1, 0.5, 0.3])
    features = torch.rand(rows, 15, generator=generator) * (torch.rand(rows, 15, generator=generator) < 0.3)
    for c, concept in enumerate(CONCEPTS):
        features[:, PLANTED[concept]] += 2 * (sign if concept == "snow" else 1.0) * masks[:, c]
    return features, masks


@pytest.mark.parametrize("signed", [False, True])
def test_finds_the_planted_latent(signed):
    found = find_concepts(CONCEPTS, planted(0), planted(1), signed=signed)
    assert {concept: f.index for concept, f in found.items()} == PLANTED
    for f in found.values():
        assert (f.sign, f.selection_auroc, f.auroc, f.iou) == (1.0, 1.0, 1.0, 1.0)
        assert 0 < f.threshold < 2


def test_a_neuron_that_falls_silent_is_found_by_its_sign():
    selection, held_out = planted(0, sign=-1.0), planted(1, sign=-1.0)
    f = find_concepts(CONCEPTS, selection, held_out, signed=True)["snow"]
    assert (f.index, f.sign, f.auroc, f.iou) == (11, -1.0, 1.0, 1.0)
    # Latents have no sign: without it another feature is the best there is.
    assert find_concepts(CONCEPTS, selection, held_out, signed=False)["snow"].index != 11


def test_nothing_is_chosen_on_the_held_out_images():
    """Other held-out data change what is measured there, and nothing that was chosen."""
    selection = planted(0)
    features, masks = planted(1)
    shuffled = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))]
    first = find_concepts(CONCEPTS, selection, (features, masks), signed=True)
    second = find_concepts(CONCEPTS, selection, (shuffled, masks), signed=True)
    for concept in CONCEPTS:
        a, b = first[concept], second[concept]
        assert (a.index, a.sign, a.threshold, a.selection_auroc) == (b.index, b.sign, b.threshold, b.selection_auroc)
        assert b.auroc < 0.7
        mask = masks[:, CONCEPTS.index(concept)]
        assert b.iou == pytest.approx(iou(b.sign * shuffled[:, b.index], mask, b.threshold))


def test_the_threshold_moved_on_held_out_data_costs_iou():
    """Scores twice as large on held-out images: at the selection's threshold the map is too wide."""
    scores = torch.cat([torch.linspace(0, 1, 80), torch.linspace(2, 3, 20)])[:, None]
    mask = torch.arange(100)[:, None] >= 80
    f = find_concepts(["c"], (scores, mask), (scores * 3, mask), signed=False)["c"]
    assert f.threshold == 1.5
    assert f.auroc == 1.0
    hits = int((3 * scores > 1.5).sum())
    assert f.iou == pytest.approx(20 / hits)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_concept_on_no_token_or_on_all(everywhere):
    features, masks = planted(0)
    degenerate = masks.clone()
    degenerate[:, 1] = everywhere
    with pytest.raises(TideError, match="'near' is on every token or on none of the selection; select other images"):
        find_concepts(CONCEPTS, (features, degenerate), (features, masks), signed=True)
    assert torch.tensor(
        find_concepts(CONCEPTS, (features, masks), (features, degenerate), signed=True)["near"].auroc
    ).isnan()


def test_masks_of_other_concepts_are_refused():
    with pytest.raises(TideError, match="2 concepts need as many columns of masks, not 3"):
        find_concepts(["a", "b"], planted(0), planted(1), signed=False)


# -- IoU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distinct", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_best_iou_tries_every_threshold(distinct, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(distinct, (60,), generator=generator) / distinct
    mask = torch.rand(60, generator=generator) < scores
    threshold, value = best_iou(scores, mask)
    tried = [iou(scores, mask, float(t)) for t in scores.unique()]
    assert value == pytest.approx(max(tried))
    assert iou(scores, mask, threshold) == pytest.approx(value)


def test_best_iou_of_a_latent_that_is_nearly_always_silent():
    """Its quantiles are all 0, the best threshold is not."""
    scores = torch.zeros(10_000)
    scores[:100] = 1.0
    scores[:20] = 2.0
    mask = torch.arange(10_000) < 20
    assert best_iou(scores, mask) == (1.5, 1.0)


def test_best_iou_between_neighbouring_floats():
    """Half way between them is one of them."""
    low = torch.tensor(1.0)
    for _ in range(4):
        high = torch.nextafter(low, torch.tensor(2.0))
        scores, mask = torch.stack([low, high]), torch.tensor([False, True])
        threshold, value = best_iou(scores, mask)
        assert value == iou(scores, mask, threshold) == 1.0
        low = high


def test_iou_without_anything():
    nothing = torch.zeros(4, dtype=torch.bool)
    assert iou(torch.zeros(4), nothing, 0.5) == 0.0
    for mask in (nothing, ~nothing):
        assert best_iou(torch.ones(4), mask) == (1.0, 0.0)
    assert best_iou(torch.ones(1), ~nothing[:1]) == (1.0, 0.0)


# -- the paper's recipe -----------------------------------------------------------------------------------------


def test_pooled_latents_are_the_mean_over_the_images_that_share_the_concept():
    latents = torch.arange(24.0).view(12, 2)  # four images of three tokens
    labels = torch.tensor([True, False, False, True])
    expected = torch.cat([latents[:3], latents[9:]]).mean(0)
    torch.testing.assert_close(pooled_latents(latents, labels, 3), expected)
    with pytest.raises(TideError, match="no image shows this concept; collect images that do"):
        pooled_latents(latents, torch.zeros(4, dtype=torch.bool), 3)


def test_scores_are_cosines_with_the_pooled_latents():
    latents = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert concept_scores(latents, torch.tensor([2.0, 0.0])).tolist() == pytest.approx([1, 0.6, 0])
    background = torch.tensor([2.0, -1.0])
    assert concept_scores(latents, torch.tensor([2.0, 0.0]), background).tolist() == pytest.approx([0, 0.8, 0])


def test_the_recipe_ranks_a_concepts_tokens_first():
    """Tokens of a concept fire its latent; labels are of whole images; a background that all share is taken away."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2 == 0
    mask = (torch.arange(8) < 2) & labels[:, None]
    latents = 0.1 * torch.rand(40, 8, 20, generator=generator)
    latents[..., 3] += 5.0
    latents[..., 9] += 2.0 * mask
    flat = latents.view(-1, 20)
    pooled = pooled_latents(flat, labels, 8)
    background = pooled_latents(flat, torch.ones(40, dtype=torch.bool), 8)
    scores = concept_scores(flat, pooled, background)
    assert scores[mask.flatten()].min() > scores[~mask.flatten()].max()


# -- latents of annotated images --------------------------------------------------------------------------------


def annotated(**kwargs) -> Annotated:
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return Annotated(torch.tensor([900.0, 100.0]), x, **kwargs)


def model(conditioned: bool = False) -> TIDE:
    modulation = ModulationConfig(d_model=6, d_embedding=8, n_frequencies=8, conditioned=conditioned)
    return TIDE(TIDEConfig(6, 20, 3, modulation=modulation))


@pytest.mark.parametrize("conditioned", [False, True])
def test_mean_latents_is_the_mean_over_timesteps(conditioned):
    """Each image with its own conditioning, all its tokens with the same."""
    conditioning = 5 * torch.randn(3, 8, generator=torch.Generator().manual_seed(1)) if conditioned else None
    data, sae = annotated(conditioning=conditioning), model(conditioned)
    expected = torch.zeros(3, 4, 20)
    with torch.no_grad():
        for i, t in enumerate((900.0, 100.0)):
            for image in range(3):
                own = None if conditioning is None else conditioning[image : image + 1]
                expected[image] += sae.encode(data.x[i, image], Position(t, own)).dense(20) / 2
    found = mean_latents(sae, data)
    assert not found.requires_grad
    torch.testing.assert_close(found.view(3, 4, 20), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(TideError, match="no timesteps to read concepts at"):
        mean_latents(sae, Annotated(torch.zeros(0), torch.zeros(0, 3, 4, 6)))


def test_dense_latents_keep_the_shape_and_the_mode():
    sae = model().train()
    assert sae.dense(torch.randn(2, 3, 6), 5.0).shape == (2, 3, 20)
    assert sae.training


def test_labels_follow_from_masks_and_the_given_ones_stay():
    roof = torch.zeros(3, 4, dtype=torch.bool)
    roof[1, 2] = True
    given = {"winter": torch.tensor([True, True, False])}
    data = annotated(masks={"roof": roof}, labels=given)
    assert data.labels["roof"].tolist() == [False, True, False]
    assert data.labels["winter"].tolist() == [True, True, False]
    assert list(given) == ["winter"]  # the caller's mapping is not written to
    assert data.flat_masks(["roof"]).nonzero().tolist() == [[6, 0]]
    assert data.n_tokens == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: annotated(masks={"roof": torch.zeros(3, 5)}), r"the mask of 'roof' is \[3, 5\] .*cover \[3, 4\]"),
        (lambda: annotated(labels={"roof": torch.zeros(4)}), r"the label of 'roof' is \[4\]; 3 images need one each"),
        (lambda: Annotated(torch.zeros(1), torch.zeros(2, 3, 4, 6)), r"activations are \[2, 3, 4, 6\]; 1 timesteps"),
        (lambda: Annotated(torch.zeros(2), torch.zeros(2, 3, 6)), r"need \[2, images, tokens, d_model\]"),
    ],
)
def test_misshaped_annotations(make, message):
    with pytest.raises(TideError, match=message):
        make()
