"""Where and what, chosen apart; the file; what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.helpers.banks import TIMESTEPS, small_bank
from tests.helpers.edit_samples import BLOCK, K, draw, make_sae
from tide.adapters import adapter_for
from tide.editing import Bank, Contrast, Place, SteerNearest, SteerTowards, Where, edit, load_bank, save_bank
from tide.editing.bank import SparseMeans
from tide.editing.bank_file import KEY
from tide.errors import TideError
from tide.files import open_tensors, read_tensors, replace_file, tensors_writer


@pytest.fixture(scope="module")
def bank(sae) -> Bank:
    return small_bank(sae)


def _place(n: int, timestep: float = 950.0) -> Place:
    return Place(timestep, token=torch.arange(n), image=torch.zeros(n, dtype=torch.int64))


def _tokens(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 192, generator=torch.Generator().manual_seed(5))


# -- what -------------------------------------------------------------------------------------------------------


def test_the_mean_is_reached_at_factor_1(bank):
    moved = bank.what("blue", by="mean").activations(_tokens(), _place(6))
    assert torch.equal(moved, bank.concepts["blue"].mean[0].expand(6, -1))


def test_with_a_source_the_difference_of_the_means_is_added(bank):
    moved = bank.what("blue", by="mean", source="red", factor=0.5).activations(_tokens(), _place(6, 0.0))
    wanted = _tokens() + 0.5 * (bank.concepts["blue"].mean[1] - bank.concepts["red"].mean[1])
    torch.testing.assert_close(moved, wanted)


def test_the_nearest_tokens_of_a_concept(bank):
    """A token of the bank itself has itself as a neighbour, and moves towards the mean of eight."""
    change = bank.what("house", by="nearest")
    own = bank.concepts["house"].tokens[0].float()
    similar = torch.nn.functional.normalize(own, dim=1) @ torch.nn.functional.normalize(own, dim=1).T
    wanted = own[similar.topk(8).indices].mean(1)
    torch.testing.assert_close(change.activations(own, _place(10)), wanted)


def test_a_contrast_adds_what_the_words_changed(bank):
    change = bank.what("blue", by="contrast", source="red", factor=2.0)
    assert isinstance(change, SteerNearest)
    found = bank.contrasts["red", "blue"]
    assert change.keys is found.keys
    assert change.values is found.values
    assert change.factor == 2.0


@pytest.mark.parametrize("source", [None, "red"])
def test_latents_go_from_those_without_or_of_the_source_to_those_with(bank, sae, source):
    change = bank.what("blue", by="latents", source=source)
    assert isinstance(change, Contrast)
    absent = bank.concepts["blue"].absent if source is None else bank.concepts["red"].present
    for found, means in ((change.absent, absent), (change.present, bank.concepts["blue"].present)):
        listed = means.lists(sae.n_latents)
        assert torch.equal(found.values[listed], means.dense(sae.n_latents)[listed])
    z = torch.ones(3, sae.n_latents)
    kept = bank.what("blue", by="latents", source=source, model=sae).latents(z, _place(3))
    assert (kept > 0).sum(1).tolist() == [K] * 3


def test_of_a_latent_that_one_concept_lists_the_least_difference_is_taken(bank):
    """Two of 96 latents are listed for each concept. Number 5 may be as strong in red, which lists none below 1; 7 is
    stronger by 3 at least; 9 and 11 are weaker by what exceeds 0.9, the least that blue lists."""

    def means(indices, values):
        return SparseMeans(torch.tensor([indices] * 2, dtype=torch.int32), torch.tensor([values] * 2))

    blue, red = bank.concepts["blue"], bank.concepts["red"]
    blue = replace(blue, present=means([5, 7], [0.9, 4.0]), absent=means([5, 7], [0.0, 0.0]))
    red = replace(red, present=means([9, 11], [3.0, 1.0]), absent=means([9, 11], [0.0, 0.5]))
    change = replace(bank, concepts={"blue": blue, "red": red}).what("blue", by="latents", source="red")
    difference = change.present.values - change.absent.values
    found = {i: round(float(difference[0, i]), 6) for i in difference[0].nonzero().flatten().tolist()}
    assert found == {7: 3.0, 9: -2.1, 11: -0.1}


def test_sparse_means_keep_those_named():
    means = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 4.0, 0.0]])
    found = SparseMeans.at(means, torch.tensor([[1, 3], [2, 0]]))
    assert found.dense(4).tolist() == [[0.0, 3.0, 0.0, 2.0], [5.0, 0.0, 4.0, 0.0]]


def test_raw_edits_of_a_bank_of_a_modules_output_need_the_sae_that_says_where(bank, sae):
    """``edit(pipe, None, ...)`` would write attention's activations into the block's output."""
    attention = replace(bank, sae={**bank.sae, "tensor": "attention"})
    for by, source in (("nearest", None), ("mean", None), ("contrast", "red")):
        with pytest.raises(TideError, match="the bank is of the block's attention; give model="):
            attention.what("blue", by=by, source=source)
        attention.what("blue", by=by, source=source, model=sae)
    attention.what("blue", by="latents")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concept": "bleu"}, "does not hold 'bleu'; did you mean 'blue'\\? it holds blue, house, red"),
        ({"concept": "blue", "by": "mean", "source": "gren"}, "does not hold 'gren'"),
        ({"concept": "blue", "by": "contrast"}, "name the source \\(the bank has red to blue\\)"),
        (
            {"concept": "red", "by": "contrast", "source": "blue"},
            "no contrast from 'blue' to 'red'; it has red to blue",
        ),
        ({"concept": "blue", "by": "nearest", "source": "red"}, "leave 'red' off"),
        ({"concept": "blue", "by": "median"}, "by = 'median' is unknown; use nearest, mean, contrast, latents"),
    ],
)
def test_what_the_bank_does_not_have_is_named(bank, options, message):
    with pytest.raises(TideError, match=message):
        bank.what(**options)


# -- where and what in a pipeline ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["nearest", "mean", "contrast", "latents"])
def test_each_what_goes_with_a_where(alpha, sae, bank, plain, by):
    """Only the tokens around those where the detector's latent is active change."""
    source = "red" if by == "contrast" else None
    change = bank.what("blue", by=by, source=source)
    house = replace(bank.concepts["house"], features=torch.tensor([4], dtype=torch.int32), weights=torch.ones(2, 1))
    where = replace(bank, concepts={"house": house}).where("house", sae, grow=1)
    assert isinstance(where, Where)
    with edit(alpha, sae, change, tokens=where) as met:
        found = draw(alpha)
    assert 0 < met.tokens < 4 * 64
    assert not torch.equal(found, plain[1.0])


def test_a_steer_of_a_bank_needs_no_sae(alpha, bank):
    assert isinstance(bank.what("blue", by="mean"), SteerTowards)
    with edit(alpha, None, bank.what("blue", by="mean"), block=bank.block) as met:
        draw(alpha, n_steps=2)
    assert met.moved == 2 * 64
    assert bank.block == BLOCK


# -- the file -----------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(bank, sae, tmp_path):
    save_bank(tmp_path / "bank.safetensors", bank)
    found = load_bank(tmp_path / "bank.safetensors")
    assert found.sae == bank.sae
    assert torch.equal(found.timesteps, TIMESTEPS)
    assert list(found.concepts) == list(bank.concepts)
    for name, held in bank.concepts.items():
        for part in ("tokens", "mean", "features", "weights", "thresholds"):
            assert torch.equal(getattr(found.concepts[name], part), getattr(held, part))
        for side in ("present", "absent"):
            dense = getattr(held, side).dense(sae.n_latents)
            assert torch.equal(getattr(found.concepts[name], side).dense(sae.n_latents), dense)
    assert torch.equal(found.contrasts["red", "blue"].values, bank.contrasts["red", "blue"].values)
    assert found.concepts["red"].tokens.dtype == torch.float16


def test_any_text_names_a_concept(sae, tmp_path):
    save_bank(tmp_path / "b", small_bank(sae, ("a/b.c", "ü, ü", "")))
    assert list(load_bank(tmp_path / "b").concepts) == ["a/b.c", "ü, ü", ""]


def test_other_files_are_refused(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(TideError, match="does not exist"):
        load_bank(path)
    replace_file(path, tensors_writer({"a": torch.zeros(1)}))
    with pytest.raises(TideError, match="holds no bank; make one with `tide bank`"):
        load_bank(path)
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(TideError, match="a pickle, which is never loaded"):
        load_bank(path)


def _damaged(path, bank, change) -> None:
    save_bank(path, bank)
    tensors = read_tensors(path)
    with open_tensors(path) as file:
        described = json.loads(file.metadata()[KEY])
    change(tensors, described)
    replace_file(path, tensors_writer(tensors, {KEY: json.dumps(described)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: t.pop("concepts.0.mean"), "lacks concepts.0.mean"),
        (lambda t, d: t.update(more=torch.zeros(1)), "holds more"),
        (lambda t, d: t["concepts.1.tokens"].fill_(torch.inf), "holds NaN or inf"),
        (lambda t, d: t["concepts.1.features"].fill_(96), "latents of 'blue' that an SAE of 96 does not have"),
        (lambda t, d: d["concepts"][0].pop("name"), r"concepts\[0\].name is missing"),
        (lambda t, d: d["concepts"][0].update(tokens="many"), "must be a whole number"),
        (lambda t, d: d["sae"].pop("d_model"), "sae.d_model is missing"),
        (lambda t, d: d["concepts"][0].update(tokens=3), "has shape"),
        (lambda t, d: d["concepts"][0].update(tokens=-1), "impossible sizes"),
        (lambda t, d: d["concepts"][0].update(name="blue"), "a concept or a contrast twice"),
    ],
)
def test_damage_is_told_in_a_line(bank, tmp_path, change, message):
    _damaged(tmp_path / "b", bank, change)
    with pytest.raises(TideError, match=message):
        load_bank(tmp_path / "b")


# -- what does not fit --------------------------------------------------------------------------------------------


def test_another_sae_is_refused(alpha, bank):
    with pytest.raises(TideError, match=r"recorded with another SAE.*record it with this SAE"):
        bank.where("house", make_sae(alpha, 3))


def test_another_transformer_is_refused(sae, sigma, alpha, bank):
    bank.check(adapter_for(alpha))
    with pytest.raises(TideError, match="width 192 and the transformer 48"):
        bank.check(adapter_for(sigma))
    other = Bank({**bank.sae, "family": "flux"}, bank.timesteps, bank.concepts, bank.contrasts)
    with pytest.raises(TideError, match="of flux and this is pixart"):
        other.check(adapter_for(alpha))
    with (
        pytest.raises(TideError, match="width 192 and the transformer 48"),
        edit(sigma, None, bank.what("blue"), block=0),
    ):
        pass
