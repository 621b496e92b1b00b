"""The ops as PyTorch uses them: schemas, fake tensors, autograd registration, ``torch.compile``."""

import pytest
import torch
from torch.library import opcheck

from tide_kernels import LossOptions, LossWeights, autograd, decode, encode_threshold, encode_topk, modulate, tide_loss
from tide_kernels.options import LossArguments, Parameters
from tide_kernels.testing import assert_close, random_problem

ALL_TERMS = LossWeights(mse=1.0, cosine=1.0, temporal=0.1, sparsity=10.0, auxk=0.1)
DTYPE = torch.float32


@pytest.fixture
def problem():
    return random_problem(8, 6, 20, 3, groups=2, dtype=DTYPE)


def encode_arguments(p, regime):
    return (p.x, p.scale, p.shift, p.W_enc, p.b_enc, p.group, True, 3, DTYPE, 4, "reference", regime, "split")


def test_modulate_keeps_the_rules_of_the_library(problem):
    p = problem
    opcheck(autograd.modulate, (p.x.requires_grad_(), p.scale, p.shift, p.group, True, "reference"))
    opcheck(autograd.modulate, (p.x, None, p.shift, p.group, False, "reference"))


def test_encode_topk_keeps_the_rules_of_the_library(problem, regime):
    opcheck(autograd.encode_topk, encode_arguments(problem, regime))


def test_decode_keeps_the_rules_of_the_library(problem, regime):
    p = problem
    values, indices = autograd.encode_topk(*encode_arguments(p, regime))
    opcheck(autograd.decode, (values.detach(), p.W_dec, p.b_dec, indices, DTYPE, 4, "reference", regime))


def test_tide_loss_keeps_the_rules_of_the_library(problem, regime):
    p = problem
    dead = torch.arange(20) % 4 == 0
    parameters = Parameters(**p.parameters())
    options = LossOptions(3, 2, True, True, ALL_TERMS, 0.1, 0.01, 0.1, 4, "reference", regime)
    for given in (options, options._replace(s_target=None, chunk=None)):
        arguments = LossArguments(p.x, parameters, p.group, dead, DTYPE, given)
        opcheck(autograd.tide_loss, (*arguments.flat(), [True] * 6 + [False]))


def test_threshold_activations_keep_the_rules_of_the_library(problem, regime):
    p = problem
    threshold = torch.full((3, 20), 0.2, requires_grad=True)
    code = (p.x, p.scale, p.shift, p.W_enc, p.b_enc, threshold, p.group, True, 3, 5, DTYPE, 4, "reference", regime)
    opcheck(autograd.encode_threshold, code)
    for activation, given in (("batch_topk", None), ("jumprelu", threshold)):
        parameters = Parameters(**p.parameters(), threshold=given)
        options = LossOptions(3, chunk=4, backend="reference", regime=regime, activation=activation)
        arguments = LossArguments(p.x, parameters, p.group, None, DTYPE, options)
        opcheck(autograd.tide_loss, (*arguments.flat(), [True] * 6 + [given is not None]))


def test_backward_ops_have_the_shapes_their_fakes_say(problem, regime):
    p = problem
    values, indices = autograd.encode_topk(*encode_arguments(p, regime))
    tensors = (p.x, p.scale, p.shift, p.W_enc, p.b_enc, p.group)
    wanted = [True, False, True, True, False]
    tests = ("test_schema", "test_faketensor")
    arguments = (values.detach(), indices, *tensors, True, 3, 4, "reference", regime, wanted)
    opcheck(autograd.encode_backward, arguments, test_utils=tests)
    decoder = (values.detach(), p.W_dec, p.b_dec, indices, DTYPE, 4, "reference", regime, [True, True, False])
    opcheck(autograd.decode_backward, (p.x, *decoder), test_utils=tests)
    opcheck(autograd.modulate_backward, (p.x, *tensors[:3], p.group, True, "reference", [True] * 3), test_utils=tests)


def modulated(p):
    return modulate(p.x, p.scale, p.shift, p.group), p.scale


def encoded(p):
    return encode_topk(p.x, p.W_enc, p.b_enc, p.k)[0], p.W_enc


def decoded(p):
    values, indices = encode_topk(p.x, p.W_enc, p.b_enc, p.k)
    return decode(values.detach(), indices, p.W_dec, p.b_dec), p.W_dec


def lost(p):
    return tide_loss(**p.arguments()).total, p.W_enc


@pytest.mark.parametrize("run", [modulated, encoded, decoded, lost])
@pytest.mark.parametrize("keep", [True, False])
def test_second_derivatives_are_refused_rather_than_zero(problem, run, keep):
    result, parameter = run(problem)
    (gradient,) = torch.autograd.grad(result.square().sum(), parameter, create_graph=True, retain_graph=keep)
    first = parameter.grad = None
    with pytest.raises(RuntimeError, match=r"autograd formula|no second derivatives"):
        gradient.square().sum().backward()
    assert parameter.grad is first


class Autoencoder(torch.nn.Module):
    def __init__(self, p):
        super().__init__()
        for name, parameter in p.parameters().items():
            setattr(self, name, torch.nn.Parameter(parameter.detach()))
        self.k = p.k

    def forward(self, x, group):
        x_mod = modulate(x, self.scale, self.shift, group)
        values, indices = encode_topk(x_mod, self.W_enc, self.b_enc, self.k, layer_norm=True)
        return decode(values, indices, self.W_dec, self.b_dec)

    def above(self, x, group):
        modulation = {"scale": self.scale, "shift": self.shift, "group": group}
        values, indices, _ = encode_threshold(x, self.W_enc, self.b_enc, 0.1, k=self.k, **modulation)
        return decode(values, indices, self.W_dec, self.b_dec)

    def jump_loss(self, x, group):
        parameters = (self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        modulation = {"scale": self.scale, "shift": self.shift, "group": group}
        # A threshold that moves with a parameter.
        options = {"activation": "jumprelu", "threshold": self.b_enc.exp(), "weights": ALL_TERMS._replace(auxk=0.0)}
        return tide_loss(x, *parameters, self.k, **modulation, paired=True, **options).total

    def loss(self, x, group):
        weights = ALL_TERMS._replace(auxk=0.0)
        parameters = (self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        modulation = {"scale": self.scale, "shift": self.shift, "group": group}
        return tide_loss(x, *parameters, self.k, **modulation, paired=True, weights=weights).total


@pytest.mark.parametrize("dynamic", [False, True], ids=["", "dynamic shapes"])
@pytest.mark.parametrize("method", ["forward", "above", "loss", "jump_loss"])
def test_a_module_compiles_whole(problem, method, dynamic):
    module = Autoencoder(problem)
    run = getattr(module, method)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    plain, traced = run(problem.x, problem.group), compiled(problem.x, problem.group)
    assert_close(traced, plain, 1e-6)
    parameters = list(module.parameters())
    expected = torch.autograd.grad(plain.square().sum(), parameters)
    got = torch.autograd.grad(traced.square().sum(), parameters)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 1e-5)


def test_autocast_reaches_compiled_code(problem):
    module = Autoencoder(problem)
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert compiled(problem.x, problem.group).dtype == torch.bfloat16
