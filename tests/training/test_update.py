"""The update of the parameters, against PyTorch's own AdamW and clipping."""

from __future__ import annotations

import pytest
import torch

from tide.training import update
from tide.training.update import AdamW, gradient_norm
from tide_kernels import native


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(200, 5), (200,), (7, 3), (3,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def groups(own: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": own[:2]}, {"params": own[2:]}]


def gradients(step: int, like: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator) for p in like]


def ours(own: list[torch.nn.Parameter], n_steps: int, clip: float, skip=None) -> AdamW:
    """The first two parameters' gradients are kept; the third has none in odd steps."""
    optimizer = AdamW(groups(own), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    optimizer.keep(own[:2])
    kept = [own[0].grad, own[1].grad]
    for step in range(n_steps):
        optimizer.begin()
        found = gradients(step, own)
        for p, gradient in zip(own[:2], found, strict=False):
            p.grad.copy_(gradient)
        for p, gradient in zip(own[2:], found[2:], strict=True):
            p.grad = None if p is own[2] and step % 2 else gradient
        optimizer.update(gradient_norm(optimizer.gradients()), clip, skip)
        assert [own[0].grad.data_ptr(), own[1].grad.data_ptr()] == [each.data_ptr() for each in kept]
    return optimizer


def plain(own: list[torch.nn.Parameter], n_steps: int, clip: float) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(groups(own), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for step in range(n_steps):
        for p, gradient in zip(own, gradients(step, own), strict=True):
            p.grad = None if p is own[2] and step % 2 else gradient
        torch.nn.utils.clip_grad_norm_(own, clip)
        optimizer.step()
    return optimizer


@pytest.fixture
def by_torch(monkeypatch):
    """The update of a machine without compiled kernels."""
    monkeypatch.setattr(update.native, "unavailable", lambda: "not built")


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("piece", [2**20, 1000, 700, 5], ids=["whole", "just whole", "128 rows", "64 rows"])
@pytest.mark.parametrize("clip", [1e9, 0.5], ids=["not clipped", "clipped"])
def test_equals_torchs(monkeypatch, piece, clip):
    """Bit for bit where nothing is clipped; clipping divides where torch multiplies."""
    monkeypatch.setattr(update, "_PIECE", piece)
    own, others = parameters(), parameters()
    mine, theirs = ours(own, 5, clip), plain(others, 5, clip)
    assert_equal_states(mine, theirs, {"rtol": 0, "atol": 0} if clip > 1 else {"rtol": 1e-5, "atol": 1e-7})


@pytest.mark.parametrize("clip", [1e9, 0.5], ids=["not clipped", "clipped"])
def test_compiled_kernels_update_as_torch_does(clip):
    """Up to the order of roundings, see tests/kernels/native/test_adamw.py."""
    if reason := native.unavailable():
        pytest.skip(reason)
    assert_equal_states(ours(parameters(), 5, clip), plain(parameters(), 5, clip), {"rtol": 1e-5, "atol": 1e-7})


def assert_equal_states(mine: AdamW, theirs: torch.optim.AdamW, near: dict[str, float]) -> None:
    own, others = ([p for group in each.param_groups for p in group["params"]] for each in (mine, theirs))
    for p, q in zip(own, others, strict=True):
        torch.testing.assert_close(p, q, **near)
        for name, value in theirs.state[q].items():
            torch.testing.assert_close(mine.state[p][name], value, **near, msg=lambda m, n=name: f"{n}: {m}")
    assert mine.state_dict()["state"].keys() == theirs.state_dict()["state"].keys()


def test_a_step_begins_without_the_gradients_that_are_not_kept():
    own = parameters()
    optimizer = ours(own, 1, 1e9)
    kept = own[0].grad
    optimizer.begin()
    assert own[0].grad is kept
    assert own[2].grad is own[3].grad is None


def test_what_is_kept_lies_where_it_is_told_to():
    """With its values, on a CPU."""
    own, memory = parameters(), []

    def zeros(shape, dtype, device):
        memory.append(torch.zeros(shape, dtype=dtype, device=device))
        return memory[-1]

    optimizer = AdamW(groups(own), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    optimizer.keep(own[:1], zeros)
    tensors = own[0], own[0].grad, *(optimizer.state[own[0]][name] for name in ("exp_avg", "exp_avg_sq"))
    assert [each.data_ptr() for each in tensors] == [each.data_ptr() for each in memory]
    assert torch.equal(own[0], parameters()[0])


def test_moments_that_are_loaded_lie_where_they_are_kept():
    first, second = (ours(parameters(), n_steps, 1e9) for n_steps in (3, 1))
    own = second.param_groups[0]["params"][0]
    before = second.state[own]["exp_avg"].data_ptr()
    second.load_state_dict(first.state_dict())
    assert second.state[own]["exp_avg"].data_ptr() == before
    for got, want in zip(second.state.values(), first.state.values(), strict=True):
        assert all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_skipped_changes_nothing(bad):
    own = parameters()
    optimizer = ours(own, 3, 0.5, torch.zeros(()))
    before = [p.detach().clone() for p in own]
    state = {p: {n: v.clone() for n, v in optimizer.state[p].items()} for p in own}
    optimizer.begin()
    for p in own:
        p.grad = torch.full_like(p, bad) if p.grad is None else p.grad.fill_(bad)
    optimizer.update(gradient_norm(optimizer.gradients()), 0.5, torch.ones(()))
    for p, value in zip(own, before, strict=True):
        assert torch.equal(p, value)
        assert all(torch.equal(optimizer.state[p][name], old) for name, old in state[p].items())


@pytest.fixture(params=[False, True], ids=["compiled", "PyTorch"])
def either(request):
    if request.param:
        request.getfixturevalue("by_torch")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("known", [0.0, 50.0], ids=["alone", "beside others"])
@pytest.mark.parametrize("length", [1, 7, 64, 128, 3072])
def test_the_norm(length, known):
    own = [torch.randn(length, 5), torch.randn(length), torch.randn(3, 2, 2)]
    exact = (torch.cat([each.double().flatten() for each in own]).square().sum() + known).sqrt()
    torch.testing.assert_close(gradient_norm(own, known).double(), exact, rtol=1e-6, atol=0)
    assert gradient_norm([torch.full((4, 4), float("inf"))]).isinf()
    assert gradient_norm([torch.full((4, 4), float("nan"))]).isnan()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("clip", [0.5, 1e6], ids=["clipped", "not clipped"])
def test_a_gpu_divides_by_the_norm_and_skips_without_reading_back(clip):
    own, plain = ([torch.nn.Parameter(p.detach().cuda()) for p in parameters()] for _ in range(2))
    optimizer = AdamW(groups(own), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    optimizer.keep(own[:2])
    standard = torch.optim.AdamW(groups(plain), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(4):
        skip = torch.full((), float(step == 2), device="cuda")
        optimizer.begin()
        for parameter, gradient in zip(own, gradients(step, own), strict=True):
            parameter.grad = gradient.cuda() if parameter.grad is None else parameter.grad.copy_(gradient.cuda())
        before = [p.clone() for p in own]
        optimizer.update(gradient_norm(optimizer.gradients()), clip, skip)
        if step == 2:
            assert all(torch.equal(a, b) for a, b in zip(own, before, strict=True))
            continue
        for parameter, gradient in zip(plain, gradients(step, plain), strict=True):
            parameter.grad = gradient.cuda()
        torch.nn.utils.clip_grad_norm_(plain, clip)
        standard.step()
        for got, want in zip(own, plain, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # the divisor is rounded to float32
