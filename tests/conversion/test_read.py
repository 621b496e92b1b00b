"""Folders of other libraries become TIDEs with the same latents and reconstructions."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.converted import assert_same
from tests.helpers.foreign_saes import CASES, D, K, N, function_of, rows_apart, write_foreign
from tide.conversion import LIBRARIES, Origin, library_of, read_sae, write_sae
from tide.sae import TIDE


def origin_of(kind: str) -> Origin | None:
    return Origin(tensor="attention_input", target="attention") if "transcoder" in kind else None


def both(case, folder, **options):
    """What was read, and the function of the files with rows for it."""
    library, kind = case
    write_foreign(folder, library, kind, **options)
    function = function_of(folder)
    return read_sae(folder, origin=origin_of(kind)), function, rows_apart(function)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_latents_and_reconstruction(case, tmp_path):
    found, function, x = both(case, tmp_path)
    wanted, model = function(x.double()), found.model
    assert found.library == case[0]
    assert_same(model.dense(x), wanted.z)
    with torch.no_grad():
        assert_same(model(x), wanted.y)


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated"])
def test_saelens_that_subtracts_nothing(kind, tmp_path):
    found, function, x = both(("saelens", kind), tmp_path, subtracts=False)
    assert not found.model.config.centre
    assert_same(found.model.dense(x), function(x.double()).z)
    assert_same(found.model(x).detach(), function(x.double()).y)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_checkpoint_is_a_tide_as_any_other(case, tmp_path):
    found, function, x = both(case, tmp_path / "foreign")
    found.model.save_pretrained(tmp_path / "tide")
    assert_same(TIDE.from_pretrained(tmp_path / "tide").dense(x), function(x.double()).z)


#: Kinds that are written back as another class, or with the decoder's norms folded.
FOLDED = ("topk rescaled", "AutoEncoder")
#: Normalised by overcomplete each time, and here once; what TopK keeps for encode(use_threshold=True).
CHANGED = {"dictionary._weights", "dictionary.multiplier", "AutoEncoderTopK threshold"}


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_there_and_back(case, tmp_path):
    """The same function; the same tensors where nothing was folded."""
    library, kind = case
    found, function, x = both(case, tmp_path / "foreign")
    write_sae(found.model, tmp_path / "back", library)
    wanted, back = function(x.double()), function_of(tmp_path / "back")(x.double())
    assert_same(back.z, wanted.z)
    assert_same(back.y, wanted.y)
    if kind not in FOLDED:
        before, after = (tensors_of(library, tmp_path / each) for each in ("foreign", "back"))
        assert before.keys() == after.keys()
        for name, value in before.items():
            if not {name, f"{kind} {name}"} & CHANGED:
                torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-6)


def tensors_of(library, folder):
    path = folder / LIBRARIES[library].WEIGHTS
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)


def test_a_large_mean_costs_no_digits(tmp_path):
    """A bias of 300 that is subtracted, folded into b_enc, would cost two digits of seven."""
    write_foreign(tmp_path, "sparsify", "topk")
    tensors = load_file(tmp_path / "sae.safetensors")
    tensors["b_dec"] += 300
    save_file(tensors, tmp_path / "sae.safetensors")
    function, near = function_of(tmp_path), torch.randn(100, D, generator=torch.Generator().manual_seed(3)) + 300
    x = near[function(near.double()).margin > 1e-3]
    assert_same(read_sae(tmp_path).model.dense(x), function(x.double()).z, 3e-5)


@pytest.mark.parametrize(
    ("case", "config"),
    [
        (("saelens", "matryoshka_batchtopk"), {"activation": "batch_topk", "k": K, "prefixes": (8, 16)}),
        (("dictionary_learning", "MatryoshkaBatchTopKSAE"), {"activation": "batch_topk", "k": K, "prefixes": (8, 16)}),
        (("saelens", "batchtopk"), {"activation": "batch_topk", "k": K, "prefixes": ()}),
        (("saelens", "jumprelu"), {"activation": "jumprelu", "k": N}),
        (("sparsify", "topk"), {"activation": "topk", "k": K, "centre": True}),
        (("saelens", "gated"), {"activation": "gated", "match_l0": False}),
        (("dictionary_learning", "AutoEncoderNew"), {"activation": "relu", "match_l0": False, "centre": False}),
    ],
    ids=str,
)
def test_what_the_config_says(case, config, tmp_path):
    found, _, _ = both(case, tmp_path)
    assert {name: getattr(found.model.config, name) for name in config} == config
    assert found.model.config.modulation is None


def test_widths_that_are_no_numbers_are_passed_over(tmp_path):
    write_foreign(tmp_path, "saelens", "matryoshka_batchtopk")
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["metadata"]["training_architecture_details"]["matryoshka_widths"] = [True, 8, N]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert read_sae(tmp_path).model.config.prefixes == ()


def test_where_it_was_trained(tmp_path):
    write_foreign(tmp_path, "sparsify", "topk")
    origin = Origin(block=13, family="pixart", pipeline="p", tensor="attention")
    config = read_sae(tmp_path, origin=origin).model.config
    assert Origin.of(config) == origin


def test_k_that_nothing_says(tmp_path):
    write_foreign(tmp_path, "saelens", "standard")
    found = read_sae(tmp_path)
    assert found.lost == (f"nothing says how many latents are active; k = {N} stands for it",)
    assert read_sae(tmp_path, k=3).model.config.k == 3
    assert read_sae(tmp_path, k=3).lost == ()


def test_thresholds_that_are_not_positive_let_all_that_is_positive_through(tmp_path):
    write_foreign(tmp_path, "saelens", "jumprelu")
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    tensors["threshold"][:8], tensors["threshold"][8:16] = 0, -1
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    function = function_of(tmp_path)
    x = rows_apart(function)
    assert_same(read_sae(tmp_path).model.dense(x), function(x.double()).z)


def test_a_threshold_before_training_is_none(tmp_path):
    write_foreign(tmp_path, "dictionary_learning", "BatchTopKSAE")
    tensors = torch.load(tmp_path / "ae.pt", weights_only=True)
    torch.save({**tensors, "threshold": torch.tensor(-1.0)}, tmp_path / "ae.pt")
    function = function_of(tmp_path)
    x = rows_apart(function)
    assert float(read_sae(tmp_path).model.state_dict()["activation.threshold"]) == 0
    assert_same(read_sae(tmp_path).model.dense(x), function(x.double()).z)


def test_sixteen_and_sixty_four_bits(tmp_path):
    for dtype, lost in ((torch.bfloat16, ()), (torch.float64, ("the digits beyond float32",))):
        write_foreign(tmp_path, "sparsify", "topk")
        tensors = load_file(tmp_path / "sae.safetensors")
        save_file({name: value.to(dtype) for name, value in tensors.items()}, tmp_path / "sae.safetensors")
        found, function = read_sae(tmp_path), function_of(tmp_path)
        x = rows_apart(function)
        assert found.lost == lost
        assert_same(found.model.dense(x), function(x.double()).z)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_library_is_found_out(case, tmp_path):
    write_foreign(tmp_path, *case)
    assert library_of(tmp_path) == case[0]


def test_a_folder_of_several_libraries_is_read_as_it_is_told(tmp_path):
    write_foreign(tmp_path, "dictionary_learning", "AutoEncoderTopK")
    write_foreign(tmp_path, "sparsify", "topk")
    assert read_sae(tmp_path, "dictionary_learning").library == "dictionary_learning"
    assert json.loads((tmp_path / "cfg.json").read_text())["d_in"] == D
