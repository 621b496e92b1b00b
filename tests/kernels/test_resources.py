"""Memory, determinism and dtypes of the ops as a training run uses them."""

import pytest
import torch

from tide_kernels import LossWeights, decode, encode_topk, reference, tide_loss
from tide_kernels.testing import assert_close, poisoned, random_problem

ALL_TERMS = LossWeights(mse=1.0, cosine=1.0, temporal=0.1, sparsity=10.0, auxk=0.1)


class LargestTensor:
    """Records the largest allocation, in float32 elements, including those inside the ops."""

    elements = 0

    def __enter__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *raised):
        self.profile.__exit__(*raised)
        self.elements = max(event.self_cpu_memory_usage for event in self.profile.events()) // 4


def test_the_loss_holds_one_chunk_of_pre_activations(regime):
    n_tokens, d_model, n_latents, k, chunk = 512, 8, 1024, 16, 32
    p = random_problem(n_tokens, d_model, n_latents, k, groups=4, dtype=torch.float32)
    dead = torch.arange(n_latents) % 8 == 0
    options = {"weights": ALL_TERMS, "paired": True, "dead": dead, "k_aux": k, "chunk": chunk}
    with LargestTensor() as largest:
        tide_loss(**p.arguments(), regime=regime, **options).total.backward()
    assert chunk * n_latents <= largest.elements <= 1.1 * chunk * n_latents
    assert largest.elements < n_tokens * n_latents / 10


def test_the_ops_hold_one_chunk_of_pre_activations(regime, monkeypatch):
    n_tokens, n_latents, chunk = 512, 1024, 32
    monkeypatch.setattr("tide_kernels.options._CHUNK_ELEMENTS_CPU", chunk * n_latents)
    p = random_problem(n_tokens, 8, n_latents, 16, dtype=torch.float32)
    with LargestTensor() as largest:
        values, indices = encode_topk(p.x, p.W_enc, p.b_enc, p.k, scale=p.scale, regime=regime)
        decode(values, indices, p.W_dec, p.b_dec, regime=regime).sum().backward()
    assert largest.elements <= 1.1 * chunk * n_latents


def test_no_primitive_expands_the_code_by_the_width():
    n_tokens, d_model, n_latents, k = 64, 32, 128, 16
    p = random_problem(n_tokens, d_model, n_latents, k, dtype=torch.float32, requires_grad=False)
    values, indices = encode_topk(p.x, p.W_enc, p.b_enc, k)
    with LargestTensor() as largest:
        reference.gather(values, indices, p.W_dec)
        reference.sampled(p.x, p.W_dec, indices)
        out = torch.zeros(n_latents, d_model)
        reference.scatter(values, reference.transpose(indices, n_latents), p.x, out)
    assert largest.elements <= 2 * n_latents * d_model < n_tokens * k * d_model


def test_two_runs_agree_in_every_bit(regime):
    options = {
        "weights": ALL_TERMS,
        "paired": True,
        "dead": torch.arange(300) % 4 == 0,
        "k_aux": 5,
        "chunk": 20,
    }
    runs = []
    for _ in range(2):
        p = random_problem(64, 16, 300, 15, groups=7, dtype=torch.float32)
        terms = tide_loss(**p.arguments(), regime=regime, **options)
        terms.total.backward()
        runs.append([*terms, *(t.grad for t in p.parameters().values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_results_do_not_depend_on_uninitialised_memory(regime, monkeypatch):
    p = random_problem(12, 6, 40, 8, groups=2, dtype=torch.float32)
    p.b_enc.data -= 1  # some places stay unused

    def run():
        values, indices = encode_topk(p.x, p.W_enc, p.b_enc, p.k, regime=regime)
        x_hat = decode(values, indices, p.W_dec, p.b_dec, regime=regime)
        return [
            values,
            indices,
            x_hat,
            *torch.autograd.grad(x_hat.square().sum(), (p.W_enc, p.b_enc, p.W_dec)),
        ]

    wanted = run()
    assert (wanted[1] < 0).any()
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, device="cpu": poisoned(shape, dtype, device))
    monkeypatch.setattr(torch, "empty_like", lambda t, **_: poisoned(tuple(t.shape), t.dtype, t.device))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda t, *shape: poisoned(shape, t.dtype, t.device))
    assert all(torch.equal(a, b) for a, b in zip(run(), wanted, strict=True))


def narrow_error(dtype: torch.dtype, regime: str) -> dict[str, float]:
    """RMS error of the total and the gradients in ``dtype``, relative to their RMS, against float32.

    k = n takes every positive pre-activation, so rounding changes values but hardly the selection.
    """
    wide = random_problem(64, 16, 48, 48, groups=3, dtype=dtype)
    exact = random_problem(64, 16, 48, 48, groups=3, dtype=torch.float32)
    for name, parameter in exact.parameters().items():
        parameter.data = wide.parameters()[name].detach().float()
    exact.x = wide.x.float()
    got, want = tide_loss(**wide.arguments(), regime=regime), tide_loss(**exact.arguments(), regime=regime)
    got.total.backward()
    want.total.backward()
    errors = {"total": float((got.total / want.total - 1).detach().abs())}
    for name, parameter in wide.parameters().items():
        assert parameter.grad.dtype == dtype
        truth = exact.parameters()[name].grad
        errors[name] = float((parameter.grad.float() - truth).square().mean().sqrt() / truth.square().mean().sqrt())
    return errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_parameters_lose_rounding_only(dtype, regime):
    # Half an eps per rounding. A gradient includes the roundings of x_mod, the pre-activation, the reconstruction,
    # its gradient, the code's gradient and the result: six independent ones, so about sqrt(6) / 2 eps in RMS. The
    # factor 4 allows for reconstructions whose error is small compared to x, where their rounding weighs more.
    errors = narrow_error(dtype, regime)
    assert max(errors.values()) <= 4 * 6**0.5 / 2 * torch.finfo(dtype).eps, errors


def test_float16_gradients_of_large_batches_do_not_vanish(regime):
    # At this size, 2 / (n_tokens d_model) times a typical error is below the least float16, 6e-8.
    p = random_problem(4096, 32, 64, 4, dtype=torch.float32)
    p.x *= 1e-3
    p.b_dec.data *= 1e-3
    with torch.autocast("cpu", torch.float16):
        terms = tide_loss(**p.arguments(), weights=LossWeights(cosine=0), regime=regime)
    exact = torch.autograd.grad(tide_loss(**p.arguments(), weights=LossWeights(cosine=0)).total, p.W_dec)[0]
    assert_close(torch.autograd.grad(terms.total, p.W_dec)[0], exact, 0.05, "W_dec")


def test_autocast(regime):
    p = random_problem(32, 8, 60, 6, groups=2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        terms = tide_loss(**p.arguments(), weights=ALL_TERMS._replace(auxk=0), paired=True, regime=regime)
        terms.total.backward()
    narrow = random_problem(32, 8, 60, 6, groups=2, dtype=torch.float32)
    for parameter in (narrow.W_enc, narrow.W_dec):
        parameter.data = parameter.detach().bfloat16().float()  # the operands that autocast uses
    assert terms.total.dtype == torch.float32
    wide = tide_loss(**narrow.arguments(), weights=ALL_TERMS._replace(auxk=0), paired=True)
    assert_close(terms.total, wide.total, 0.02)
    for name, parameter in p.parameters().items():
        assert parameter.grad.dtype == torch.float32, name
        # It has more digits than bfloat16, so sparse products were never rounded to it.
        if regime == "sparse":
            assert not torch.equal(parameter.grad, parameter.grad.bfloat16().float()), name
