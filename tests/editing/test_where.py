"""Masks that latents draw at every step: what they are made of, and the edits that they guide."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from tests.helpers.edit_samples import BLOCK, SILENT, STEPS, N, draw, make_sae
from tests.helpers.families import CORE, FAMILIES, TWO_CALLS
from tests.helpers.families import adapter as family_adapter
from tests.helpers.families import draw as draw_family
from tide.adapters import Call, adapter_for, tap
from tide.editing import Detector, Erase, Place, Scale, Steer, Where, draw_edits, edit
from tide.editing.where import averaged, grown, held
from tide.editing.where_run import WhereRun, drawing
from tide.errors import TideError, TideWarning
from tide.sae import TIDE, TIDEConfig
from tide.training import TrainConfig, build_model

ALWAYS, NEVER = -1.0, 1e9
CHANGE = Scale(range(N), 3.0)
FEATURES = (3, 20, 41)

# -- pictures of scores, without a pipeline ------------------------------------------------------------------------


def identity(d: int = 4) -> TIDE:
    """An SAE whose latents are the positive activations themselves."""
    sae = TIDE(TIDEConfig(d, d, d, encoder_bias=False, decoder_bias=False)).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
    return sae


def detector(*thresholds: float, timesteps=(0.0,), features=(0,), weights=None) -> Detector:
    weights = torch.ones(len(timesteps), len(features)) if weights is None else torch.tensor(weights)
    return Detector(identity(), torch.tensor(features), torch.tensor(timesteps), weights, torch.tensor(thresholds))


def called(scores, timestep: float = 500.0, *, conditional=None, grid=None) -> tuple[torch.Tensor, Call]:
    """A call whose latent 0 is ``scores [rows, tokens]``."""
    x = torch.zeros(*torch.as_tensor(scores).shape, 4)
    x[..., 0] = torch.as_tensor(scores)
    conditional = torch.ones(len(x), dtype=torch.bool) if conditional is None else torch.tensor(conditional)
    return x, Call(torch.full((len(x),), timestep), conditional=conditional, grid=grid)


def masks(where: Where, *scores, first: float = 900.0, grid=None) -> list[list[list[bool]]]:
    """The masks of a run whose steps have these scores."""
    run = WhereRun(where)
    return [run.mask(*called(each, first - 100 * i, grid=grid)).int().tolist() for i, each in enumerate(scores)]


def test_a_score_is_a_weighted_sum_of_the_latents_with_the_weights_of_the_nearest_timestep():
    each = detector(0.0, 0.0, timesteps=(100.0, 900.0), features=(2, 0), weights=[[1.0, 10.0], [-2.0, 0.5]])
    x = torch.tensor([[1.0, 7.0, 3.0, 9.0], [-4.0, 0.0, 5.0, 0.0]])
    place = {"token": torch.arange(2), "image": torch.zeros(2, dtype=torch.int64)}
    assert each.scores(x, Place(120.0, **place)).tolist() == [13.0, 5.0]
    assert each.scores(x, Place(880.0, **place)).tolist() == [-5.5, -10.0]
    assert each.scores(x, Place(500.0, **place)).tolist() == [13.0, 5.0], "of two equally near the first"


def test_a_token_is_on_above_the_threshold_of_the_nearest_timestep():
    where = Where((detector(2.0, 1.0, timesteps=(900.0, 500.0)),))
    scores = [[0.5, 1.0, 1.5, 2.0, 2.5]]
    assert masks(where, scores, scores, scores, scores) == [[[0, 0, 0, 0, 1]]] * 3 + [[[0, 0, 1, 1, 1]]]


def test_what_was_on_stays_on_above_a_share_of_the_threshold():
    """A score that wavers about the threshold, in one token of each image."""
    scores = [[0.9], [1.1], [0.9], [1.1], [0.7], [0.9], [1.1], [0.8]]
    steps = [[[0.0, *each]] for each in scores]
    flickers = [each[0][1] for each in masks(Where((detector(1.0),)), *steps)]
    holds = [each[0][1] for each in masks(Where((detector(1.0),), low=0.75), *steps)]
    assert flickers == [0, 1, 0, 1, 0, 0, 1, 0]
    assert holds == [0, 1, 1, 1, 0, 0, 1, 1]


def test_a_negative_threshold_is_not_held_and_turns_nothing_off():
    scores, on = torch.tensor([[-0.8, -0.4, -1.2]]), torch.tensor([[True, True, True]])
    assert held(scores, on, torch.tensor([[-1.0]]), 0.5).tolist() == [[True, True, False]]


def test_each_detector_holds_what_it_had_on_itself():
    """A second detector with a low threshold of its own does not hold what the first turned on."""
    first, second = detector(1.0), detector(10.0)
    where = Where((first, second), low=0.1)
    assert masks(where, [[1.5, 12.0]], [[0.5, 2.0]], [[0.05, 1.05]]) == [[[1, 1]], [[1, 1]], [[0, 1]]]
    alone = Where((second,), low=0.1)
    assert masks(alone, [[1.5, 12.0]], [[1.5, 2.0]]) == [[[0, 1]], [[0, 1]]]


GRID = (4, 5)


def picture(*lines: str) -> list[int]:
    return [int(mark == "#") for line in lines for mark in line]


DOT = picture("#....", ".....", ".....", "....#")


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (0, picture("#....", ".....", ".....", "....#")),
        (1, picture("##...", "##...", "...##", "...##")),
        (2, picture("###..", "#####", "#####", "..###")),
    ],
)
def test_grow_adds_squares_of_tokens(by, expected):
    assert grown(torch.tensor([DOT]).bool(), by, GRID).int().tolist() == [expected]


def test_smooth_averages_over_the_neighbours_that_there_are():
    scores = torch.arange(20.0).view(1, 20)
    smooth = averaged(scores, 1, GRID).view(GRID)
    at = scores.view(GRID)
    assert smooth[1, 2] == pytest.approx(float(at[0:3, 1:4].mean()))
    assert smooth[0, 0] == pytest.approx(float(at[:2, :2].mean()))
    assert smooth[3, 2] == pytest.approx(float(at[2:, 1:4].mean()))


@pytest.mark.parametrize("by", [4, 2**31])
def test_more_tokens_than_the_grid_has_are_all_of_it(by):
    """2**31 is more than a pooling's size can be."""
    scores = torch.arange(12.0)[None]
    assert averaged(scores, by, (3, 4)).tolist() == [[5.5] * 12]
    assert grown(scores == 0, by, (3, 4)).all()


def test_scores_are_smoothed_before_the_threshold_and_the_mask_is_grown_after_it():
    """A lone speck falls below the threshold, and a spot of nine tokens stays, larger by one token."""
    lines = ["#......", "....###", "....###", "....###"]
    scores, grid = [picture(*lines)], (4, 7)
    assert masks(Where((detector(0.99),), smooth=1), scores, grid=grid) == [
        [picture(".......", ".......", ".....##", ".....##")]
    ]
    assert masks(Where((detector(0.99),), smooth=1, grow=1), scores, grid=grid) == [
        [picture(".......", "....###", "....###", "....###")]
    ]


def test_an_image_with_too_few_tokens_has_none_and_forgets_them():
    scores = [[2.0, 0.0, 0.0], [2.0, 2.0, 0.0]]
    later = [[0.6, 0.0, 0.0], [0.6, 0.6, 0.0]]
    where = Where((detector(1.0),), least=2, low=0.5)
    assert masks(where, scores, later) == [[[0, 0, 0], [1, 1, 0]]] * 2


def test_inverted_and_within():
    """Inverting comes before the cut."""
    inside = torch.tensor([True, True, False])
    where = Where((detector(1.0),))
    assert masks(~where, [[2.0, 0.0, 0.0]]) == [[[0, 1, 1]]]
    assert masks(~~where, [[2.0, 0.0, 0.0]]) == [[[1, 0, 0]]]
    assert masks(replace(~where, within=inside), [[2.0, 0.0, 0.0]]) == [[[0, 1, 0]]]
    each = torch.tensor([[True, False, False], [False, False, True]])
    assert masks(replace(where, within=each), [[2.0, 2.0, 2.0]] * 2) == [each.int().tolist()]


def test_united():
    one, other = Where((detector(1.0),), low=0.5), Where((detector(3.0, features=(1,)),), low=0.5)
    both = one | other
    assert both.detectors == one.detectors + other.detectors
    assert both.low == 0.5
    x, call = called([[2.0, 0.0, 0.0, 0.0]])
    x[0, 2, 1] = 4.0
    assert WhereRun(both).mask(x, call).int().tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grow": 1}, "grow is 0 and 1; give both the same to unite them"),
        ({"low": 0.5}, "low is 1.0 and 0.5; give both the same to unite them"),
        ({"within": torch.ones(3, dtype=torch.bool)}, "the two are within different masks; give both the same"),
        ({"invert": True}, "one of the two is inverted; unite them first and invert the whole"),
    ],
)
def test_what_does_not_unite(change, message):
    where = Where((detector(1.0),))
    with pytest.raises(TideError, match=f"^{message}"):
        _ = where | replace(where, **change)
    with pytest.raises(TypeError):
        _ = where | torch.ones(3)


@pytest.mark.parametrize(
    ("second", "first_timestep"),
    [([[0.8, 0.8]], 950.0), ([[0.8, 0.8], [0.8, 0.8]], 800.0), ([[0.8, 0.8, 0.8]], 800.0)],
    ids=["a higher timestep", "more images", "more tokens"],
)
def test_a_new_run_remembers_nothing_of_the_last(second, first_timestep):
    run = WhereRun(Where((detector(1.0),), low=0.5))
    assert run.mask(*called([[2.0, 0.0]], 900.0)).any()
    assert run.mask(*called([[0.8, 0.0]], 850.0)).any()
    assert len(run.masks) == 2
    assert not run.mask(*called(second, first_timestep)).any()
    assert [timestep for timestep, _ in run.masks] == [first_timestep]


def test_a_call_for_the_negative_prompt_has_the_latest_mask_and_before_it_none():
    run = WhereRun(Where((detector(1.0),)))
    negative = called([[9.0, 9.0, 9.0]], conditional=[False])
    assert run.mask(*negative).tolist() == [[False] * 3]
    assert run.mask(*called([[0.0, 2.0, 0.0]])).tolist() == [[False, True, False]]
    assert run.mask(*negative).tolist() == [[False, True, False]]
    more = called([[9.0, 9.0, 9.0]] * 2, conditional=[False, False])
    assert run.mask(*more).tolist() == [[False] * 3] * 2
    assert len(run.masks) == 1


def test_the_rows_of_the_prompt_alone_draw():
    run = WhereRun(Where((detector(1.0),)))
    x, call = called([[9.0, 9.0], [2.0, 0.0], [9.0, 9.0], [0.0, 2.0]], conditional=[False, True, False, True])
    assert run.mask(x, call).int().tolist() == [[1, 0], [0, 1]]


def test_each_image_has_its_own_where():
    """In the order of the prompt's rows; a call for the negative prompt has the latest masks."""
    runs = drawing([Where((detector(1.0),), low=0.5), Where((detector(3.0),))])
    scores = [[9.0, 9.0], [2.0, 4.0], [9.0, 9.0], [2.0, 4.0]]
    assert runs.mask(*called(scores, conditional=[False, True, False, True])).int().tolist() == [[1, 1], [0, 1]]
    assert runs.mask(*called(scores[:2], conditional=[False, False])).int().tolist() == [[1, 1], [0, 1]]
    assert runs.mask(*called([[0.8, 0.0], [2.0, 2.0]], 400.0)).int().tolist() == [[1, 0], [0, 0]]
    assert runs.now.int().tolist() == [[1, 0], [0, 0]]
    assert [(timestep, mask.int().tolist()) for timestep, mask in runs.masks] == [
        (500.0, [[1, 1], [0, 1]]),
        (400.0, [[1, 0], [0, 0]]),
    ]
    runs.skip()
    assert runs.now is None
    runs.start()
    assert not runs.masks
    assert not runs.mask(*called([[0.8, 0.0], [2.0, 2.0]], 300.0)).any()


def test_one_where_an_image():
    runs = drawing([Where((detector(1.0),))] * 2)
    with pytest.raises(TideError, match=r"^there is a Where for each of 2 images and the pipeline draws 3; give one"):
        runs.mask(*called([[2.0, 0.0]] * 3))


@pytest.mark.parametrize("grid", [None, (3, 3)])
def test_neighbours_that_are_not_known(grid):
    for options in ({"grow": 1}, {"smooth": 1}):
        with pytest.raises(TideError, match=r"^which of the 4 tokens are neighbours is not known here"):
            masks(Where((detector(1.0),), **options), [[0.0] * 4], grid=grid)
    assert masks(Where((detector(1.0),)), [[2.0] * 4], grid=grid) == [[[1] * 4]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Where(()), "a Where has no detector; give at least one"),
        (lambda: Where((detector(1.0),), grow=-1), "grow = -1 and smooth = 0 are numbers of tokens; give 0 or more"),
        (lambda: Where((detector(1.0),), low=1.5), "low = 1.5 is a share of the threshold; give 0 to 1"),
        (lambda: Where((detector(1.0),), least=0), "least = 0 must be at least 1"),
        (lambda: Where((detector(1.0),), within=torch.ones(3)), r"within is torch.float32 \[3\]; it must be bool"),
        (lambda: detector(1.0, features=(4,)), r"feature 4 does not exist; this SAE has latents 0\.\.3"),
        (lambda: detector(1.0, features=(-1,)), "feature -1 does not exist"),
        (lambda: detector(1.0, 2.0), r"a detector's thresholds are \[2\]; give features \[F\], timesteps \[T\]"),
        (lambda: detector(1.0, weights=[[1.0, 2.0]]), r"a detector's weights are \[1, 2\]; give features"),
        (lambda: detector(float("nan")), "a detector's thresholds are not all finite; give finite numbers"),
        (lambda: Detector.of_features(identity(), []), r"a detector's features are \[0\]; give features"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(TideError, match=f"^{message}"):
        make()


# -- edits -----------------------------------------------------------------------------------------------------------


def between(scores: torch.Tensor) -> float:
    """A threshold that a fifth of the scores is above, and that rounding does not reach."""
    ordered = scores.flatten().sort().values
    at = 4 * len(ordered) // 5
    return float(ordered[at - 1 : at + 1].mean())


def drawn(alpha, sae, where, change=CHANGE, **options):
    """The final latents under an edit, and what it met."""
    run = {name: options.pop(name) for name in ("prompts", "num_images_per_prompt", "guidance") if name in options}
    with edit(alpha, sae, change, tokens=where, warns=False, **options) as met:
        return draw(alpha, **run), met


@pytest.mark.parametrize("branch", ["conditional", "unconditional", "both"])
def test_a_mask_of_all_tokens_is_an_edit_without_a_mask_bit_for_bit(alpha, sae, branch):
    where = Where.of_features(sae, FEATURES, ALWAYS)
    found, met = drawn(alpha, sae, where, guidance=3.0, branch=branch)
    expected, plainly = drawn(alpha, sae, None, guidance=3.0, branch=branch)
    assert torch.equal(found, expected)
    assert met.tokens == plainly.tokens > 0
    assert plainly.masks == []


@pytest.mark.parametrize("sae_given", [True, False])
def test_a_mask_of_no_token_keeps_the_image_and_says_why(alpha, sae, plain, sae_given):
    where = Where.of_features(sae, (3, 9), NEVER)
    steer = Steer(torch.tensor([500.0]), torch.ones(1, 192))
    change, options = (CHANGE, {}) if sae_given else (steer, {"block": BLOCK})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with edit(alpha, sae if sae_given else None, change, tokens=where, **options) as met:
            assert torch.equal(draw(alpha), plain[1.0])
    (warning,) = [w for w in told if w.category is TideWarning]
    assert "latents 3, 9 never passed the threshold in this run; highest score " in str(warning.message)
    assert met.nothing is not None
    assert met.nothing.endswith(" of 1e+09")
    assert not any(mask.any() for _, mask in met.masks)
    assert len(met.masks) == STEPS


def scores_of(alpha, sae, features, **run) -> list[torch.Tensor]:
    """At each step of an unedited run ``[images, tokens]``, by the whole encoder."""
    seen = []

    def on_call(x, call):
        rows = call.conditional
        t = call.timestep[rows]
        z = sae.dense(x[rows], t)
        seen.append(z[..., list(features)].sum(-1))

    with torch.no_grad(), tap(adapter_for(alpha), {BLOCK: on_call}):
        draw(alpha, **run)
    return seen


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_masks_are_what_the_scores_of_each_image_say(alpha, sae, guidance):
    """Two images of each of two prompts; nothing is changed, so that the scores are those of an unedited run."""
    run = {"prompts": ("a red cube", "a house"), "num_images_per_prompt": 2, "guidance": guidance}
    scores = scores_of(alpha, sae, FEATURES, **run)
    threshold = between(torch.cat(scores))
    _, met = drawn(alpha, sae, Where.of_features(sae, FEATURES, threshold), Scale(FEATURES, 1.0), **run)
    assert len(met.masks) == STEPS
    for (_, mask), each in zip(met.masks, scores, strict=True):
        assert torch.equal(mask, each > threshold)
        assert mask.shape == (4, 64)
    assert met.tokens == sum(int(mask.sum()) for _, mask in met.masks) > 0
    assert len({tuple(mask.flatten().tolist()) for _, mask in met.masks}) > 1


def test_only_the_tokens_of_the_mask_are_edited_also_in_the_rows_of_guidance(alpha, sae):
    scores = torch.cat(scores_of(alpha, sae, FEATURES, guidance=3.0))
    where = Where.of_features(sae, FEATURES, between(scores))
    before, after, step = [], [], 0
    own = adapter_for(alpha)
    steer = Steer(torch.tensor([500.0]), torch.full((1, 192), 5.0))
    with (
        tap(own, {BLOCK: lambda x, call: before.append(x.clone())}),
        edit(alpha, None, steer, block=BLOCK, tokens=where, branch="both") as met,
        tap(own, {BLOCK: lambda x, call: after.append(x.clone())}),
    ):
        draw(alpha, guidance=3.0)
    assert len(met.masks) == len(before) == STEPS
    for step, (_, mask) in enumerate(met.masks):
        moved = (after[step] != before[step]).any(-1)
        assert torch.equal(moved, mask.expand(2, 64))
    assert 0 < sum(int(mask.sum()) for _, mask in met.masks) < 64 * STEPS


def test_steps_outside_of_the_edit_draw_no_mask(alpha, sae):
    _, met = drawn(alpha, sae, Where.of_features(sae, FEATURES, ALWAYS), steps=(0.25, 0.75))
    assert len(met.masks) == STEPS // 2
    assert met.tokens == 64 * STEPS // 2


def test_a_second_run_starts_afresh(alpha, sae):
    """Also where it begins at the timestep at which the last one ended, since a single step is edited."""
    where = replace(Where.of_features(sae, FEATURES, NEVER), low=0.0)
    with edit(alpha, sae, CHANGE, tokens=where, steps=(0.0, 0.5), warns=False) as met:
        draw(alpha, n_steps=2)
        assert met.drawn is not None
        met.drawn._on = [torch.ones(1, 64, dtype=torch.bool)]  # as if it had turned on
        draw(alpha, n_steps=2)
    assert len(met.masks) == 1
    assert not met.masks[0][1].any()


def test_of_a_pipeline_without_check_inputs_a_second_run_starts_afresh():
    """DiT's, whose runs of a single step all have the same timestep."""
    own = family_adapter("dit")
    sae = build_model(own, 1, TrainConfig(n_latents=64, k=4, modulation=False, activation="relu")).eval()
    with edit(own.pipe, sae, Scale([0], 3.0), tokens=Where.of_features(sae, [0], ALWAYS), warns=False) as met:
        for _ in range(2):
            draw_family("dit", n_steps=1)
    assert len(met.masks) == 1


def test_why_nothing_was_edited(alpha, sae):
    on = Where.of_features(sae, FEATURES, ALWAYS)
    reasons = {
        "no image had 65 tokens on at once, and the most were 64": replace(on, least=65),
        "the tokens that its latents draw are outside of the mask within": replace(
            on, within=torch.zeros(64, dtype=torch.bool)
        ),
        "its latents cover every token, and it is inverted": ~on,
        "latent 5 never passed the threshold in this run; highest score 0 of 0": Where.of_features(sae, [SILENT]),
    }
    for reason, where in reasons.items():
        assert drawn(alpha, sae, where)[1].nothing == reason
    both = Where.of_features(sae, [SILENT], 1.0) | Where.of_features(sae, [SILENT, SILENT], 2.0)
    assert drawn(alpha, sae, both)[1].nothing == (
        "latent 5 never passed the threshold in this run; highest score 0 of 1; "
        "latent 5 never passed the threshold in this run; highest score 0 of 2"
    )


def test_a_mask_by_the_name_of_each_edit(alpha, sae):
    own, run = adapter_for(alpha), {"n_steps": 2, "guidance_scale": 1.0}
    edits = {"all": Erase(range(N)), "none": Erase(range(N))}
    tokens = {"all": Where.of_features(sae, FEATURES, ALWAYS), "none": Where.of_features(sae, FEATURES, NEVER)}
    met = {}
    before, after = draw_edits(own, sae, "a red cube", edits, tokens=tokens, on_met=met.__setitem__, **run)
    assert before.tobytes() == after["none"].tobytes() != after["all"].tobytes()
    assert [met[name].tokens for name in edits] == [128, 0]


def test_a_where_for_each_image(alpha, sae):
    """Each image is what its own Where alone makes of it."""
    run = {"prompts": ("a red cube", "a house"), "guidance": 3.0}
    on, off = Where.of_features(sae, FEATURES, ALWAYS), Where.of_features(sae, [SILENT], NEVER)
    edited, met = drawn(alpha, sae, [off, on], **run)
    everywhere, _ = drawn(alpha, sae, on, **run)
    nowhere, _ = drawn(alpha, sae, off, **run)
    assert torch.equal(edited[0], nowhere[0])
    assert torch.equal(edited[1], everywhere[1])
    assert not torch.equal(everywhere[0], nowhere[0])
    assert met.tokens == 64 * STEPS
    assert [mask.sum(1).tolist() for _, mask in met.masks] == [[0, 64]] * STEPS
    assert drawn(alpha, sae, [off, off], **run)[1].nothing == (
        "latent 5 never passed the threshold in this run; highest score 0 of 1e+09"
    )


@pytest.mark.parametrize("tokens", [[], ["house"], "house"])
def test_tokens_that_are_no_where(alpha, sae, tokens):
    with pytest.raises(TideError, match=r"^tokens must be a bool mask, a Where, or a Where for each image"):
        drawn(alpha, sae, tokens)


def test_the_mask_must_be_drawn_by_what_is_edited(alpha, sae):
    steer = Steer(torch.tensor([500.0]), torch.ones(1, 192))
    where = Where.of_features(sae, FEATURES)

    def refused(message: str, where: Where | list[Where], block: int = BLOCK) -> None:
        with pytest.raises(TideError, match=f"^{message}"), edit(alpha, None, steer, block=block, tokens=where):
            pass

    refused("the mask is drawn by latents of block 6 and block 5 is edited; use one block", where, block=5)
    config = sae.config
    of = {
        "the mask is drawn by latents of attention and output is edited; use one": replace(config, tensor="attention"),
        "the mask is drawn by an SAE of sana and this is pixart; use its own SAE": replace(config, family="sana"),
        "the mask is drawn by an SAE of width 8 and the transformer has 192; use": TIDEConfig(8, N, 4, block=BLOCK),
    }
    for message, each in of.items():
        other = Where.of_features(TIDE(each), FEATURES)
        refused(message, other)
        refused(message, [where, other])
    wrong = replace(where, within=torch.ones(63, dtype=torch.bool))
    with (
        pytest.raises(TideError, match=r"^within is \[63\] and the image has 64 tokens"),
        edit(alpha, sae, CHANGE, tokens=wrong),
    ):
        draw(alpha)


@pytest.mark.parametrize("activation", ["jumprelu", "batch_topk"])
def test_latents_that_do_not_compete(alpha, activation, monkeypatch):
    """Only the columns that are needed are encoded, and the masks are those of the whole encoder."""
    sae = make_sae(alpha, BLOCK, activation=activation)
    scores = scores_of(alpha, sae, FEATURES)
    threshold = between(torch.cat(scores))
    where = Where.of_features(sae, FEATURES, threshold)
    steer = Steer(torch.tensor([500.0]), torch.zeros(1, 192))
    monkeypatch.setattr(sae, "encode", lambda *_: pytest.fail("all latents were encoded"))
    _, met = drawn(alpha, None, where, steer, block=BLOCK)
    assert all(torch.equal(mask, each > threshold) for (_, mask), each in zip(met.masks, scores, strict=True))


@pytest.mark.parametrize("name", CORE)
def test_every_family(name):
    """Images that are not square, a TIDE with the block's own modulation; calls for the negative prompt have the mask
    of the prompt's."""
    own, (rows, columns) = family_adapter(name), FAMILIES[name].grid
    block = own.n_blocks - 2
    seen = []
    with tap(own, {block: lambda x, call: seen.append((x.clone(), call))}):
        draw_family(name, guided=True)
    calls = [(x[call.conditional], call.take(call.conditional)) for x, call in seen if call.conditional.any()]
    sae = build_model(own, block, TrainConfig(n_latents=96, k=24, modulation_init="adaln")).eval()
    sae.calibrate(*calls[1])
    scores = [sae.dense(*each)[..., :3].sum(-1) for each in calls]
    threshold = between(torch.cat(scores))
    where = Where.of_features(sae, range(3), threshold, grow=1)
    still = Steer(torch.tensor([500.0]), torch.full((1, own.d_model), 0.0))
    with edit(own.pipe, None, still, block=block, tokens=where, branch="both", warns=False) as met:
        draw_family(name, guided=True)
    expected = [grown(each > threshold, 1, (rows, columns)) for each in scores]
    assert len(met.masks) == len(expected) == len(seen) // (2 if name in TWO_CALLS else 1)
    assert all(torch.equal(mask, each) for (_, mask), each in zip(met.masks, expected, strict=True))
    assert met.tokens == 2 * sum(int(each.sum()) for each in expected) > 0
