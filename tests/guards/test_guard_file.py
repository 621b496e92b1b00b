"""Guards on disk: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.helpers.edit_samples import BLOCK, N, make_sae
from tests.helpers.guards import ALWAYS, detector, guard_of, made_for, mover, refuge, words
from tide.editing.edits import Place
from tide.errors import TideError
from tide.guards import Guard, load_guard, save_guard


@pytest.fixture
def whole(adapter, sae, width) -> Guard:
    parts = {"refuge": refuge(width), "validated": {"auroc": 0.9}, "patience": 3, **mover(sae, 0.25)}
    return guard_of(adapter, sae, 0.5, width, **parts)


def test_a_guard_is_read_as_it_was_written(whole, tmp_path):
    save_guard(tmp_path / "guard", whole)
    found = load_guard(tmp_path / "guard")
    for name in ("concept", "put", "made_for", "patience", "validated"):
        assert getattr(found, name) == getattr(whole, name)
    half = {"atol": 2e-3, "rtol": 1e-3}  # of values of a few units, in 11 bits
    assert torch.allclose(found.words.down @ found.words.up, whole.words.down @ whole.words.up, **half)
    assert torch.allclose(found.refuge.states, whole.refuge.states, **half)
    assert torch.equal(found.refuge.mask, whole.refuge.mask)
    assert torch.allclose(found.what.direction, whole.what.direction, atol=1e-2)
    assert (found.what.factor, found.where.grow, found.where.least) == (1.0, 0, 1)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batch_topk", "topk"])
def test_only_the_latents_that_are_read_are_kept_and_score_the_same(alpha, adapter, width, tmp_path, activation):
    """Of TopK all are: its latents compete."""
    sae = make_sae(alpha, BLOCK, activation=activation)
    made = guard_of(adapter, sae, ALWAYS, width, **mover(sae))
    save_guard(tmp_path, made)
    found = load_guard(tmp_path)
    assert found.when.model.n_latents == (N if activation == "topk" else 5)
    x = torch.randn(16, 192, generator=torch.Generator().manual_seed(0))
    place = Place(300.0, token=torch.arange(16), image=torch.zeros(16, dtype=torch.int64))
    for mine, theirs in ((made.when, found.when), (made.where.detectors[0], found.where.detectors[0])):
        assert torch.allclose(mine.scores(x, place), theirs.scores(x, place), atol=1e-5)


def test_a_damaged_guard_is_refused(whole, tmp_path):
    save_guard(tmp_path, whole)
    described = json.loads((tmp_path / "guard.json").read_text())
    for change, message in (
        ({"format": 9}, "format 9"),
        ({"concept": None}, "concept"),
        ({"shapes": {}}, "which nothing asks for"),
        ({"shapes": {"when.features": [2**31 - 1, 2**31 - 1, 4]}}, "no shape of a tensor"),
    ):
        (tmp_path / "guard.json").write_text(json.dumps(described | change))
        with pytest.raises(TideError, match=message):
            load_guard(tmp_path)
    fewer = {name: shape for name, shape in described["shapes"].items() if not name.startswith("when")}
    (tmp_path / "guard.json").write_text(json.dumps(described | {"shapes": fewer}))
    with pytest.raises(TideError):
        load_guard(tmp_path)
    (tmp_path / "guard.json").write_text(json.dumps(described))
    (tmp_path / "guard.safetensors").write_bytes(b"nothing")
    with pytest.raises(TideError, match="not a readable safetensors file"):
        load_guard(tmp_path)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(adapter, sae, width, alpha, tmp_path):
    other = make_sae(alpha, BLOCK, activation="relu")
    two = guard_of(adapter, sae, ALWAYS, width, **mover(other))
    with pytest.raises(TideError, match="different SAEs"):
        save_guard(tmp_path / "guard", two)
    assert not (tmp_path / "guard").exists()


def test_parts_that_do_not_go_together_are_refused(adapter, sae, width):
    when, own = detector(sae, ALWAYS), made_for(adapter)
    with pytest.raises(TideError, match="does nothing"):
        Guard("house", None, when, own)
    with pytest.raises(TideError, match="where and what go together"):
        Guard("house", None, when, own, words=words(width), where=mover(sae)["where"])
    with pytest.raises(TideError, match="refuge is for prompts"):
        Guard("house", None, when, own, refuge=refuge(width), **mover(sae))
    with pytest.raises(TideError, match="width"):
        Guard("house", None, when, own, words=words(width), refuge=refuge(width + 1))
    with pytest.raises(TideError, match="give it those of its own block"):
        Guard("house", None, when, made_for(adapter, 2), words=words(width))
    with pytest.raises(TideError, match="patience = 0"):
        Guard("house", None, when, own, words=words(width), patience=0)


@pytest.mark.parametrize(
    ("part", "value"),
    [("where", {"grow": "a"}), ("shapes", {"words.up": [-4, 4]}), ("shapes", {"words.up": [10**30, 4]})],
)
def test_values_that_no_guard_has_are_refused_in_a_line(adapter, sae, width, tmp_path, part, value):
    save_guard(tmp_path, guard_of(adapter, sae, ALWAYS, width, **mover(sae)))
    described = json.loads((tmp_path / "guard.json").read_text())
    described[part].update(value)
    (tmp_path / "guard.json").write_text(json.dumps(described))
    with pytest.raises(TideError, match=r"guard\.json: .* again$"):
        load_guard(tmp_path)


def test_parts_of_another_width_or_tensor_are_refused(adapter, sae, width):
    own = made_for(adapter)
    for model, message in (
        (replace(own, d_model=7), "latents are of width 192 and it was made for 7"),
        (replace(own, tensor="attention_input"), "attention_input"),
    ):
        with pytest.raises(TideError, match=message):
            Guard("house", None, detector(sae, ALWAYS), model, **mover(sae))
