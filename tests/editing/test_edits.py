"""Edits of latents: the arithmetic of each, on rows small enough to work out by hand."""

from __future__ import annotations

import pytest
import torch

from tide.editing import (
    Add,
    Edit,
    Erase,
    Inject,
    Invert,
    PerImage,
    Place,
    Replace,
    Scale,
    ScaleTarget,
    Steer,
    Swap,
    Target,
    renormalise,
)
from tide.errors import TideError

Z = torch.tensor([[0.0, 1.0, 4.0, 0.0, 2.0], [3.0, 0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
PLACE = Place(500.0, token=torch.tensor([0, 2, 1]), image=torch.tensor([0, 1, 1]), n_tokens=3)
ONE = Target(torch.tensor([500.0]), torch.tensor([[0.0, 2.0, 0.0, 1.0, 6.0]]))


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Scale([2, 3], 3.0), rows([0, 1, 12, 0, 2], [3, 0, 0, 1.5, 0], [0] * 5)),
        (Scale([2, 2], 3.0), rows([0, 1, 12, 0, 2], [3, 0, 0, 0.5, 0], [0] * 5)),
        (Scale([], 3.0), Z),
        (Scale([1], -1.0), rows([0, -1, 4, 0, 2], [3, 0, 0, 0.5, 0], [0] * 5)),
        (Add([0, 2], 1.5), rows([1.5, 1, 5.5, 0, 2], [4.5, 0, 1.5, 0.5, 0], [1.5, 0, 1.5, 0, 0])),
        (Add([1, 2], -1.5), rows([0, 0, 2.5, 0, 2], [3, 0, 0, 0.5, 0], [0] * 5)),
        (Add([2, 2], 1.5), rows([0, 1, 5.5, 0, 2], [3, 0, 1.5, 0.5, 0], [0, 0, 1.5, 0, 0])),
        (Erase([0, 2]), rows([0, 1, 0, 0, 2], [0, 0, 0, 0.5, 0], [0] * 5)),
        (Erase(top_k=1), rows([0, 1, 0, 0, 2], [0, 0, 0, 0.5, 0], [0] * 5)),
        (Erase(top_k=4), torch.zeros(3, 5)),
        (Erase(top_k=99), torch.zeros(3, 5)),
        (Invert([2]), rows([0, 1, -4, 0, 2], [3, 0, 0, 0.5, 0], [0] * 5)),
        (Invert(top_k=2), rows([0, 1, -4, 0, -2], [-3, 0, 0, -0.5, 0], [0] * 5)),
        (Inject(ONE, 0.5), Z + rows([0, 1, 0, 0.5, 3])),
        (Replace(ONE), rows([0, 2, 0, 1, 6]).expand(3, 5)),
        (Replace(ONE, 0.25), 0.75 * Z + 0.25 * rows([0, 2, 0, 1, 6])),
        (ScaleTarget(ONE, 2, 10.0), rows([0, 10, 4, 0, 20], [3, 0, 0, 0.5, 0], [0] * 5)),
        (ScaleTarget(ONE, 5, 10.0), rows([0, 10, 4, 0, 20], [3, 0, 0, 5, 0], [0] * 5)),
    ],
    ids=[
        "scale: an inactive latent stays 0",
        "scale: a feature named twice is scaled once",
        "scale: nothing named",
        "scale: negative",
        "add: an inactive latent, too",
        "add: never below 0",
        "add: a feature named twice is added to once",
        "erase: given",
        "erase: each token's strongest",
        "erase: as many as are active",
        "erase: more than there are",
        "invert: given",
        "invert: each token's strongest",
        "inject",
        "replace",
        "replace: part of the way",
        "scale the target's strongest",
        "scale the target's strongest: its zeros are not among them",
    ],
)
def test_arithmetic(edit, expected):
    before = Z.clone()
    torch.testing.assert_close(edit.latents(Z, PLACE), expected.float(), rtol=1e-6, atol=0)
    assert torch.equal(Z, before)  # the latents given are not written to


@pytest.mark.parametrize(
    "edit",
    [
        Scale([0, 1, 2], 1.0), Scale([3], 5.0), Erase([3]), Invert([3]), Replace(ONE, 0.0), Inject(ONE, 0.0),
        ScaleTarget(ONE, 2, 1.0), Swap(ONE, ONE, 0.0), Erase(top_k=1) + Scale([0], 2.0),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_nothing_to_change_gives_equal_latents(edit):
    """Feature 3 is silent in this row."""
    z = Z[:1] if "Compose" not in type(edit).__name__ else Z[2:]
    changed = edit.latents(z, Place(500.0, token=torch.tensor([0]), image=torch.tensor([0])))
    assert not (changed != z).any()


def test_edits_compose_from_left_to_right():
    first_scaled = Scale([1], 5.0) + Erase(top_k=1)
    first_erased = Erase(top_k=1) + Scale([1], 5.0)
    assert first_scaled.latents(Z, PLACE)[0].tolist() == [0, 0, 4, 0, 2]
    assert first_erased.latents(Z, PLACE)[0].tolist() == [0, 5, 0, 0, 2]
    three = Scale([1], 2.0) + Scale([1], 3.0) + Scale([1], 4.0)
    assert three.latents(Z, PLACE)[0, 1] == 24


def test_only_edits_compose():
    with pytest.raises(TypeError):
        Scale([1], 2.0) + Steer(torch.tensor([1.0]), torch.zeros(1, 4))


def test_per_image():
    edit = PerImage((Erase([2]), Scale([0], 2.0)))
    assert edit.latents(Z, PLACE).tolist() == [[0, 1, 0, 0, 2], [6, 0, 0, 0.5, 0], [0] * 5]
    with pytest.raises(TideError, match="the batch has more images than the 1 edits given"):
        PerImage((Erase([2]),)).latents(Z, PLACE)


def test_per_image_takes_each_rows_place_along():
    maps = Target(torch.tensor([500.0]), torch.arange(15.0).view(1, 3, 5))
    edit = PerImage((Scale([0], 1.0), Replace(maps)))
    assert edit.latents(Z, PLACE)[1:].tolist() == [[10, 11, 12, 13, 14], [5, 6, 7, 8, 9]]


# -- targets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestep", "nearest"),
    [(1000.0, 0), (651.0, 0), (649.0, 1), (120.0, 2), (-5.0, 2), (650.0, 0), (300.0, 1)],
    ids=["above all", "nearer to 900", "nearer to 400", "nearer to 100", "below all", "half way: the first", "inside"],
)
def test_the_nearest_timestep_is_used(timestep, nearest):
    target = Target(torch.tensor([900.0, 400.0, 100.0]), torch.arange(6.0).view(3, 2))
    found = target.at(Place(timestep, token=PLACE.token, image=PLACE.image))
    assert found.tolist() == [[2 * nearest, 2 * nearest + 1]]


def test_a_map_goes_by_the_token():
    target = Target(torch.tensor([900.0, 200.0]), torch.arange(12.0).view(2, 3, 2))
    assert target.at(PLACE).tolist() == [[6, 7], [10, 11], [8, 9]]


@pytest.mark.parametrize(
    "place",
    [
        Place(1.0, token=torch.tensor([0, 3]), image=torch.tensor([0, 0])),
        Place(1.0, token=torch.tensor([0]), image=torch.tensor([0]), n_tokens=4),
    ],
    ids=["a token beyond the map", "a larger image, of which a covered token is edited"],
)
def test_a_map_of_another_size_is_refused(place):
    target = Target(torch.tensor([1.0]), torch.zeros(1, 3, 5))
    with pytest.raises(TideError, match=r"the target has 3 tokens and the image (more|4); make it at the same"):
        target.at(place)
    smaller = Place(1.0, token=torch.tensor([0]), image=torch.tensor([0]), n_tokens=2)
    with pytest.raises(TideError, match="the target has 3 tokens and the image 2"):
        target.at(smaller)


@pytest.mark.parametrize(
    ("timesteps", "values"),
    [((2,), (3, 5)), ((2,), (5,)), ((2,), (2, 1, 1, 5)), ((2, 1), (2, 5)), ((0,), (0, 5))],
    ids=["other length", "one row", "too many dimensions", "timesteps of two dimensions", "empty"],
)
def test_misshaped_targets(timesteps, values):
    with pytest.raises(TideError, match=r"target values .* must be \[timesteps, n_latents\] or"):
        Target(torch.zeros(timesteps), torch.zeros(values))


# -- what does not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [Scale([1, 5], 1.0), Erase([5]), Invert([5]), Scale([0], 1.0) + Erase([5])])
def test_features_out_of_range(edit):
    edit.check(6)
    with pytest.raises(TideError, match=r"^feature 5 does not exist; this SAE has latents 0\.\.4$"):
        edit.check(5)


def test_negative_features_do_not_count_from_the_end():
    with pytest.raises(TideError, match="feature -1 does not exist"):
        Erase([-1]).check(5)


@pytest.mark.parametrize(
    "edit",
    [
        Inject(ONE),
        Replace(ONE),
        ScaleTarget(ONE, 1, 2.0),
        Swap(ONE, ONE),
        PerImage((Inject(ONE),)),
        Inject(ONE) + Inject(ONE),
    ],
)
def test_a_target_of_another_sae(edit):
    edit.check(5)
    with pytest.raises(TideError, match=r"^the target has 5 latents and the SAE 6; record it with this SAE$"):
        edit.check(6)


@pytest.mark.parametrize("make", [Erase, Invert])
def test_features_or_top_k(make):
    for arguments in ({}, {"features": [1], "top_k": 1}):
        with pytest.raises(TideError, match=r"takes either features=\[...\] or top_k=..."):
            make(**arguments)
    with pytest.raises(TideError, match="top_k = 0 must be at least 1"):
        make(top_k=0)


def test_scale_target_needs_a_top_k():
    with pytest.raises(TideError, match="top_k = 0 must be at least 1"):
        ScaleTarget(ONE, 0, 2.0)


def test_an_edit_of_ones_own():
    """One method is enough; it fits any SAE unless it says otherwise."""

    class Halve(Edit):
        def latents(self, z, place):
            return z / 2

    Halve().check(3)
    assert torch.equal((Halve() + Halve()).latents(Z, PLACE), Z / 4)


# -- renormalisation ------------------------------------------------------------------------------------------


def test_renormalise_keeps_each_tokens_norm():
    """Eqs 9 and 19."""
    edited = torch.tensor([[3.0, 4.0], [-3.0, 4.0], [6.0, 8.0]])
    original = torch.tensor([[0.0, 10.0], [5.0, 0.0], [0.0, 1.0]])
    found = renormalise(edited, original)
    torch.testing.assert_close(found, torch.tensor([[6.0, 8.0], [-3.0, 4.0], [0.6, 0.8]]))
    torch.testing.assert_close(found.norm(dim=1), original.norm(dim=1))


def test_renormalise_where_a_norm_is_zero():
    edited, original = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert renormalise(edited, original).tolist() == [[0, 0], [0, 0]]


def test_renormalise_returns_the_bits_of_what_did_not_change():
    """A norm over itself is exactly 1, also beside rows that did change."""
    z = torch.rand(500, 33, generator=torch.Generator().manual_seed(0))
    edited = z.clone()
    edited[::2] *= 3
    assert torch.equal(renormalise(edited, z)[1::2], z[1::2])


# -- raw steering ---------------------------------------------------------------------------------------------


def test_steer():
    x = torch.ones(3, 2)
    by_time = Steer(torch.tensor([900.0, 450.0]), torch.tensor([[9.0, 9.0], [1.0, -1.0]]), 2.0)
    assert by_time.activations(x, PLACE).tolist() == [[3, -1]] * 3
    by_token = Steer(torch.tensor([500.0]), torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]))
    assert by_token.activations(x, PLACE).tolist() == [[1, 1], [1, 2], [2, 1]]
    by_image = Steer(torch.tensor([500.0]), torch.arange(12.0).view(1, 2, 3, 2))
    assert by_image.activations(x, PLACE).tolist() == [[1, 2], [11, 12], [9, 10]]


def test_steering_that_does_not_fit():
    timesteps = torch.tensor([1.0, 2.0])
    for shape in ((2,), (3, 4), (2, 1, 1, 1, 4)):
        with pytest.raises(TideError, match=r"direction \[.*\] must be \[timesteps, d_model\]"):
            Steer(timesteps, torch.zeros(shape))
    with pytest.raises(TideError, match="the direction has width 1 and the transformer 2"):
        Steer(timesteps, torch.zeros(2, 1)).check(2)
    with pytest.raises(TideError, match="the direction has 4 tokens and the image 3"):
        Steer(timesteps, torch.zeros(2, 4, 2)).activations(torch.ones(3, 2), PLACE)
    with pytest.raises(TideError, match="more images than the direction's 1"):
        Steer(timesteps, torch.zeros(2, 1, 3, 2)).activations(torch.ones(3, 2), PLACE)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5)], ids=["pooled", "map"])
def test_a_target_of_some_latents(shape):
    """Adds those alone; the others stay bit for bit."""
    values = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    whole = Target(torch.tensor([900.0, 400.0]), values)
    some = whole.only([3, 0])
    assert torch.equal(some.timesteps, whole.timesteps)
    assert torch.equal(some.values[..., [0, 3]], values[..., [0, 3]])
    assert not some.values[..., [1, 2, 4]].any()
    assert torch.equal(whole.values, values)
    found = Inject(some, 0.5).latents(Z, PLACE)
    assert torch.equal(found[:, [1, 2, 4]], Z[:, [1, 2, 4]])
    assert torch.equal(found[:, [0, 3]], Inject(whole, 0.5).latents(Z, PLACE)[:, [0, 3]])
    assert not whole.only([]).values.any()
    with pytest.raises(TideError, match=r"feature 5 does not exist; this SAE has latents 0\.\.4"):
        whole.only([5])
