"""The options of the loss as one value: their defaults, and how a call is flattened for the op and restored."""

import inspect

import pytest
import torch

from tide_kernels import LossOptions, LossWeights, autograd, tide_loss
from tide_kernels.options import LOSS_SCHEMA, LossArguments, Parameters, default_chunk
from tide_kernels.testing import random_problem

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_they_are_the_arguments_of_tide_loss_with_the_same_defaults():
    parameters = inspect.signature(tide_loss).parameters
    for name in LossOptions._fields:
        default = LossOptions._field_defaults.get(name, inspect.Parameter.empty)
        assert parameters[name].default == default, name
    others = {"x", *Parameters._fields, "group", "dead", "target", "gradients", "start", "squares", "ranks"}
    assert set(parameters) == others | set(LossOptions._fields)


def test_one_value_serves_as_the_arguments_of_tide_loss():
    p = random_problem(6, 4, 10, 2)
    options = LossOptions(k=2, weights=LossWeights(sparsity=1.0), delta=0.5)
    tensors = {name: value for name, value in p.arguments().items() if name != "k"}
    expected = tide_loss(**p.arguments(), weights=LossWeights(sparsity=1.0), delta=0.5)
    assert torch.equal(tide_loss(**tensors, **options._asdict()).total, expected.total)


@pytest.mark.parametrize("biases", [True, False])
def test_a_call_is_restored_as_it_was(biases):
    p = random_problem(6, 4, 10, 2, groups=3, biases=biases)
    parameters = Parameters(p.W_enc, p.b_enc, p.W_dec, p.b_dec, p.scale, p.shift, p.W_enc[:, 0])
    weights = LossWeights(1.0, 2.0, 3.0, 4.0, 5.0)
    options = LossOptions(
        2, 1, True, True, weights, 0.25, 0.5, 0.75, 8, "native", "dense", 4, "jumprelu", 0.5, 7, (2, 3)
    )
    call = LossArguments(p.x, parameters, p.group, None, torch.float32, options, p.x + 1)
    restored = LossArguments.restored(*call.flat())
    assert restored.options == options
    assert isinstance(restored.options.weights, LossWeights)
    assert all(a is b for a, b in zip(restored.flat()[:10], call.flat()[:10], strict=True))
    assert restored.dtype == torch.float32
    assert restored.target is call.target


def test_the_op_takes_the_call_and_which_gradients_are_wanted():
    names = [argument.split()[1] for argument in LOSS_SCHEMA.split(", ")]
    op = torch.ops.tide_kernels.tide_loss.default._schema
    assert [argument.name for argument in op.arguments] == [*names, "wanted"]
    assert names == ["x", *Parameters._fields, "group", "dead", "dtype", *LossOptions._fields, "target"]
    assert autograd.tide_loss._opoverload._schema == op


def test_the_default_target_is_four_fifths_of_the_largest_density():
    assert LossOptions(k=5).sparsity_target(100) == pytest.approx(0.04)
    assert LossOptions(k=5, s_target=0.0).sparsity_target(100) == 0.0


def test_a_chunk_holds_whole_pairs():
    assert LossOptions(k=1, chunk=5).tokens_per_chunk(7, 100, CPU) == 5
    assert LossOptions(k=1, chunk=5, paired=True).tokens_per_chunk(7, 100, CPU) == 6
    assert LossOptions(k=1).tokens_per_chunk(7, 100, CPU) == default_chunk(7, 100, CPU)


def test_the_default_chunk_has_at_least_two_tokens():
    assert default_chunk(7, 2**30, CPU) == 2
    assert default_chunk(7, 2**30, GPU) == 2
    assert default_chunk(2**20, 2**10, CPU) < default_chunk(2**20, 2**10, GPU)


@pytest.mark.parametrize("n_tokens", [0, 1, 255, 29127, 29128, 65536, 10**6])
@pytest.mark.parametrize("n_latents", [768, 4608, 18432, 73728, 2**20])
def test_chunks_of_a_gpu_are_equal_whole_tiles(n_tokens, n_latents):
    chunk = default_chunk(n_tokens, n_latents, GPU)
    assert chunk % 256 == 0
    assert chunk * n_latents <= max(2**29, 256 * n_latents)
    most = 2**29 // n_latents // 256 * 256
    count = -(-n_tokens // chunk)
    assert count <= max(1, -(-n_tokens // most))  # no more chunks than full ones
    assert (chunk - 256) * count < max(n_tokens, 256)  # none is shorter than the others by more than the rounding


def test_chunks_of_a_cpu_do_not_depend_on_the_number_of_tokens():
    assert {default_chunk(n_tokens, 16384, CPU) for n_tokens in (0, 1, 512, 1000)} == {256}


def test_a_code_has_four_times_the_places_of_the_mean():
    assert LossOptions(k=5).places(100) == 20
    assert LossOptions(k=50).places(100) == 100
    assert LossOptions(k=5, capacity=7).places(100) == 7
