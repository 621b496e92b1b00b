"""Folders that are damaged, hostile or beyond a TIDE: one line says what is wrong, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.damage import Trap
from tests.helpers.foreign_saes import D, N, write_foreign
from tide.conversion import LIBRARIES, Origin, read_sae
from tide.conversion.pickled import read_state_dict
from tide.errors import TideError

#: A kind of each library, its matrix of the encoder, and the entry of its configuration for the number of latents.
ONE = {
    "saelens": ("jumprelu", "W_enc", ("d_sae",)),
    "sparsify": ("topk", "encoder.weight", ("num_latents",)),
    "dictionary_learning": ("BatchTopKSAE", "encoder.weight", ("trainer", "dict_size")),
    "overcomplete": ("TopKSAE", "encoder.final_block.0.weight", ("arguments", "nb_concepts")),
}


def weights_of(folder, library):
    path = folder / LIBRARIES[library].WEIGHTS
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)


def replace_weights(folder, library, tensors):
    path = folder / LIBRARIES[library].WEIGHTS
    torch.save(tensors, path) if path.suffix == ".pt" else save_file(tensors, path)


def edit_config(folder, library, at, value):
    path = folder / LIBRARIES[library].CONFIG
    config = inner = json.loads(path.read_text())
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = value
    path.write_text(json.dumps(config))


def refusal(folder, library=None, **options):
    with pytest.raises(TideError) as error:
        read_sae(folder, library, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(params=ONE)
def library(request, tmp_path):
    write_foreign(tmp_path, request.param, ONE[request.param][0])
    return request.param


def test_a_size_that_the_configuration_contradicts(library, tmp_path):
    edit_config(tmp_path, library, ONE[library][2], N + 1)
    message = refusal(tmp_path)
    assert f"{ONE[library][2][-1]} is {N + 1} and the weights have {N}; save" in message


def test_a_missing_tensor(library, tmp_path):
    tensors = weights_of(tmp_path, library)
    name = next(name for name in tensors if name.endswith(("b_dec", "multiplier")))
    del tensors[name]
    replace_weights(tmp_path, library, tensors)
    assert f"lacks {name}; save" in refusal(tmp_path)


def test_a_missing_matrix(library, tmp_path):
    tensors = weights_of(tmp_path, library)
    del tensors[ONE[library][1]]
    replace_weights(tmp_path, library, tensors)
    assert f"{ONE[library][1]} is missing and a matrix is needed; save" in refusal(tmp_path)


def test_a_surplus_tensor(library, tmp_path):
    replace_weights(tmp_path, library, {**weights_of(tmp_path, library), "further": torch.zeros(2)})
    assert "holds further, which nothing asks for; save" in refusal(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
def test_numbers_that_float32_does_not_hold(library, tmp_path, value):
    tensors = weights_of(tmp_path, library)
    tensors[ONE[library][1]] = tensors[ONE[library][1]].double()
    tensors[ONE[library][1]][1, 2] = value
    replace_weights(tmp_path, library, tensors)
    assert f"{ONE[library][1]} holds NaN or inf; save" in refusal(tmp_path)


def test_a_wrong_dtype(library, tmp_path):
    tensors = weights_of(tmp_path, library)
    tensors[ONE[library][1]] = tensors[ONE[library][1]].int()
    replace_weights(tmp_path, library, tensors)
    assert f"{ONE[library][1]} is int32, not float32; save" in refusal(tmp_path)


def test_a_wrong_shape(library, tmp_path):
    tensors = weights_of(tmp_path, library)
    name = next(name for name in tensors if tensors[name].dim() == 1)
    tensors[name] = torch.zeros(3)
    replace_weights(tmp_path, library, tensors)
    assert f"{name} has shape [3], not [" in refusal(tmp_path)


def test_files_that_are_missing_or_cut(library, tmp_path):
    path = tmp_path / LIBRARIES[library].WEIGHTS
    path.write_bytes(path.read_bytes()[:-40])
    assert str(path) in refusal(tmp_path)
    path.unlink()
    assert "does not exist; the SAE is incomplete" in refusal(tmp_path, library)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"metadata": 3, "trainer": 3, "arguments": 3}'])
def test_a_configuration_that_is_none(library, tmp_path, text):
    (tmp_path / LIBRARIES[library].CONFIG).write_text(text)
    if library != "sparsify" or not text.startswith('{"'):  # sparsify's has no object in it
        assert LIBRARIES[library].CONFIG in refusal(tmp_path)


@pytest.mark.parametrize("library", ["sparsify", "overcomplete", "dictionary_learning", "saelens"])
@pytest.mark.parametrize("k", [0, -1, N + 1, 2.5, "5", True, None])
def test_k_that_is_none(tmp_path, library, k):
    kind = {"dictionary_learning": "AutoEncoderTopK", "overcomplete": "TopKSAE"}.get(library, "topk")
    write_foreign(tmp_path, library, kind)
    at = {"dictionary_learning": ("trainer", "k"), "overcomplete": ("arguments", "top_k")}.get(library, ("k",))
    edit_config(tmp_path, library, at, k)
    assert f"{at[-1]} is " in refusal(tmp_path)


@pytest.mark.parametrize(
    ("library", "at", "value", "message"),
    [
        ("saelens", ("architecture",), "temporal", "a TIDE has no architecture 'temporal'; convert one of standard"),
        ("saelens", ("architecture",), "batchtopk", "of a training of batchtopk; save it with save_inference_model"),
        ("saelens", ("normalize_activations",), "layer_norm", "no weights can stand for it"),
        ("saelens", ("normalize_activations",), "expected_average_only_in", "fold_activation_norm_scaling_factor"),
        ("saelens", ("reshape_activations",), "hook_z", "convert an SAE of vectors, not of heads"),
        ("saelens", ("metadata", "sae_lens_version"), "5.3.0", "is not of SAELens 6; load it there and save it again"),
        ("saelens", ("d_out",), 3, "d_out is 3 and the weights have 6; a TIDE reconstructs what it reads"),
        ("sparsify", ("activation",), "groupmax", "a TIDE has no activation 'groupmax'; convert one of topk"),
        ("sparsify", ("skip_connection",), True, "a TIDE has no skip connection"),
        ("dictionary_learning", ("trainer", "dict_class"), "IdentityDict", "is 'IdentityDict'; convert one of Auto"),
        ("overcomplete", ("cls",), "MpSAE", "is of 'MpSAE'; convert one of SAE, TopKSAE"),
        ("overcomplete", ("arguments", "encoder_module"), "mlp_bn_1", "encoder is linear, not 'mlp_bn_1'"),
        ("overcomplete", ("arguments", "dictionary_params"), {"normalization": "l3"}, "normalization 'l3' is unknown"),
        ("overcomplete", ("centre",), [1.0], "centre has 1 numbers and the weights 6"),
    ],
)  # fmt: skip
def test_what_a_tide_cannot_represent(tmp_path, library, at, value, message):
    write_foreign(tmp_path, library, ONE[library][0])
    edit_config(tmp_path, library, at, value)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("value", [["topk"], {"topk": 1}, 3, None])
@pytest.mark.parametrize(
    ("library", "at"), [("saelens", ("architecture",)), ("dictionary_learning", ("trainer", "dict_class"))]
)
def test_a_kind_that_is_no_word(tmp_path, library, at, value):
    write_foreign(tmp_path, library, ONE[library][0])
    edit_config(tmp_path, library, at, value)
    assert "; convert one of" in refusal(tmp_path)


def test_a_long_value_is_cut(library, tmp_path):
    edit_config(tmp_path, library, ONE[library][2], [1] * 10_000)
    assert len(refusal(tmp_path)) < 500


@pytest.mark.parametrize(
    ("library", "kind", "name", "value"),
    [
        ("overcomplete", "SAE multiplied", "dictionary.multiplier", torch.tensor(200.0)),
        ("saelens", "topk rescaled", "W_dec", torch.full((N, D), 1e38)),
        ("dictionary_learning", "AutoEncoder", "decoder.weight", torch.full((D, N), 3e38)),
    ],
)
def test_products_that_float32_does_not_hold(tmp_path, library, kind, name, value):
    """Each factor is in the file and finite there."""
    write_foreign(tmp_path, library, kind)
    tensors = weights_of(tmp_path, library)
    replace_weights(tmp_path, library, {**tensors, name: value})
    assert "is not finite in float32 once the library's options are folded in" in refusal(tmp_path)


def test_a_centre_that_float32_does_not_hold(tmp_path):
    write_foreign(tmp_path, "overcomplete", "SAE")
    edit_config(tmp_path, "overcomplete", ("centre",), [1e300] * D)
    assert "activation_mean is not finite in float32" in refusal(tmp_path)


def test_a_running_threshold_is_needed(tmp_path):
    write_foreign(tmp_path, "overcomplete", "BatchTopKSAE")
    edit_config(tmp_path, "overcomplete", ("running_threshold",), None)
    assert "lacks running_threshold, without which BatchTopKSAE encodes nothing" in refusal(tmp_path)


@pytest.mark.parametrize("groups", [[8, 8], [8, 8, 9], [0, 24], [-1, 25], []])
def test_groups_that_do_not_add_up(tmp_path, groups):
    write_foreign(tmp_path, "dictionary_learning", "MatryoshkaBatchTopKSAE")
    tensors = weights_of(tmp_path, "dictionary_learning")
    replace_weights(tmp_path, "dictionary_learning", {**tensors, "group_sizes": torch.tensor(groups).long()})
    assert f"group_sizes do not add up to the {N} latents" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("library", "kind", "name"),
    [("saelens", "topk rescaled", "W_dec"), ("dictionary_learning", "AutoEncoder", "decoder.weight")],
)
def test_a_norm_of_zero_divides_nothing(tmp_path, library, kind, name):
    write_foreign(tmp_path, library, kind)
    tensors = weights_of(tmp_path, library)
    (tensors[name] if name == "W_dec" else tensors[name].T)[3] = 0
    replace_weights(tmp_path, library, tensors)
    assert f"{name} has a row of zeros" in refusal(tmp_path)


def test_folders_that_are_none(tmp_path):
    assert "is not a folder; give the one that another library saved" in refusal(tmp_path / "none")
    assert "holds no SAE of saelens, sparsify, dictionary_learning, overcomplete; give" in refusal(tmp_path)
    write_foreign(tmp_path / "layers.3", "sparsify", "topk")
    assert f"in folders of their own; give one of them, such as {tmp_path / 'layers.3'}" in refusal(tmp_path)
    write_foreign(tmp_path / "layers.3", "saelens", "topk")
    assert "holds SAEs of saelens and sparsify; say which" in refusal(tmp_path / "layers.3")
    assert "'keras' is not a library that is known here" in refusal(tmp_path, "keras")


def test_a_checkpoint_is_no_foreign_folder(tmp_path):
    write_foreign(tmp_path / "foreign", "sparsify", "topk")
    read_sae(tmp_path / "foreign").model.save_pretrained(tmp_path / "tide")
    assert "is a TIDE checkpoint; say which library's folder to write (--to)" in refusal(tmp_path / "tide")


def test_what_is_given_and_contradicts_the_files(tmp_path):
    write_foreign(tmp_path, "sparsify", "topk")
    edit_config(tmp_path, "sparsify", ("tide",), {"block": 3, "family": "pixart", "tensor": "output"})
    assert read_sae(tmp_path, origin=Origin(pipeline="p")).model.config.block == 3
    assert "was made of block 3, not 4; leave block out" in refusal(tmp_path, origin=Origin(block=4))
    assert "has k = 5, not 6; leave k out" in refusal(tmp_path, k=6)
    edit_config(tmp_path, "sparsify", ("tide",), {"block": "3"})
    assert "block is '3' and must be" in refusal(tmp_path)
    edit_config(tmp_path, "sparsify", ("tide",), {"block": -3})
    assert "block -3 is not a block's number; count from 0" in refusal(tmp_path)


def test_transcoders_and_their_modules(tmp_path):
    write_foreign(tmp_path / "t", "sparsify", "transcoder")
    assert "is a transcoder; say of which module" in refusal(tmp_path / "t")
    write_foreign(tmp_path / "s", "sparsify", "topk")
    target = Origin(tensor="attention_input", target="attention")
    message = "reconstructs what it encodes and is no transcoder; leave the target out"
    assert message in refusal(tmp_path / "s", origin=target)


# -- the pickle ------------------------------------------------------------------------------------------------------


def test_code_in_a_pickle_is_not_run(tmp_path):
    write_foreign(tmp_path, "dictionary_learning", "AutoEncoder")
    trap = tmp_path / "trap"
    for write in (
        lambda path: torch.save(Trap(trap), path),
        lambda path: torch.save({"encoder.weight": Trap(trap)}, path),
        lambda path: path.write_bytes(pickle.dumps(Trap(trap))),
    ):
        write(tmp_path / "ae.pt")
        assert "is not a state dict of tensors alone" in refusal(tmp_path)
        assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))  # which it would have done
    assert trap.exists()


@pytest.mark.parametrize(
    "held",
    [
        [torch.zeros(2)],
        torch.zeros(2),
        {"encoder.weight": 3},
        {"encoder.weight": torch.zeros(2, 2).to_sparse()},
        {"encoder.weight": torch.zeros(2, 2, device="meta")},
        {"encoder.weight": torch.zeros(1).expand(2**20, 2**20)},
    ],
    ids=["list", "tensor", "number", "sparse", "meta", "one number repeated"],
)
def test_a_pickle_of_something_else(tmp_path, held):
    torch.save(held, tmp_path / "ae.pt")
    with pytest.raises(TideError, match=r"something else than tensors by name|of tensors alone"):
        read_state_dict(tmp_path / "ae.pt")


def test_a_number_that_is_cut_off_is_refused(tmp_path):
    """Python's struct has an error of its own: four bytes of a length are asked for, and two are there."""
    (tmp_path / "ae.pt").write_bytes(b"\x80\x02X\x05\x00")
    with pytest.raises(TideError, match="is not a state dict of tensors alone"):
        read_state_dict(tmp_path / "ae.pt")


def test_damaged_pickles_are_refused_in_a_line(tmp_path):
    path, draw = tmp_path / "ae.pt", random.Random(0)
    torch.save({"encoder.weight": torch.ones(4, 3)}, path, _use_new_zipfile_serialization=False)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.2 else whole)
        for _ in range(min(3, len(damaged))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except TideError as error:
            refused += "\n" not in str(error)
    assert refused > 150
