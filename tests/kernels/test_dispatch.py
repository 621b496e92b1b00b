"""The choice of backend and regime, and the reasons given by backends that cannot serve."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tide_kernels import BackendError, backend_status, dispatch, encode_topk, reference, register_backend, tide_loss
from tide_kernels.dispatch import choose
from tide_kernels.testing import random_problem

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(autouse=True)
def only_the_reference(monkeypatch):
    """A test's registrations end with it, and no test depends on the backends of this machine."""
    monkeypatch.setattr(dispatch, "_SOURCES", {"reference": "tide_kernels.reference"})


def fake(unavailable=None, refusal=None, **primitives):
    return SimpleNamespace(unavailable=lambda: unavailable, refuses=lambda *_: refusal, **primitives)


def test_the_names_are_known_in_the_order_auto_tries_them(monkeypatch):
    monkeypatch.undo()
    assert list(backend_status()) == ["triton", "native", "reference"]
    assert backend_status()["reference"] is None


def test_status_gives_a_reason_for_each_backend_that_cannot_run():
    register_backend("broken", fake(unavailable="no such device"))
    register_backend("missing", "tide_kernels.there_is_no_such_module")
    register_backend("works", fake())
    assert backend_status() == {
        "works": None,
        "missing": "this installation has no tide_kernels.there_is_no_such_module",
        "broken": "no such device",
        "reference": None,
    }


def test_a_missing_dependency_is_named(tmp_path, monkeypatch):
    (tmp_path / "needy_backend.py").write_text("import a_package_that_does_not_exist\n")
    (tmp_path / "torn_backend.py").write_text("raise ImportError('undefined\\n symbol')\n")
    monkeypatch.syspath_prepend(tmp_path)
    register_backend("needy", "needy_backend")
    register_backend("torn", "torn_backend")
    status = backend_status()
    assert status["needy"] == ("needy_backend needs the package a_package_that_does_not_exist, which is not installed")
    assert status["torn"] == "torn_backend cannot be imported: undefined symbol"


def test_an_explicit_backend_that_cannot_serve_raises_with_the_reason():
    register_backend("picky", fake(refusal="float32 only"))
    with pytest.raises(BackendError, match=r"'picky': float32 only; backend='auto'") as raised:
        choose("picky", "auto", n_latents=10, k=1, **CPU)
    assert "\n" not in str(raised.value)


def test_auto_falls_back_and_says_why():
    register_backend("picky", fake(refusal="float32 only"))
    register_backend("broken", fake(unavailable="no such device"))
    choice = choose("auto", "auto", n_latents=10, k=1, **CPU)
    assert choice.backend == "reference"
    assert choice.refused == {"broken": "no such device", "picky": "float32 only"}


def test_a_backend_may_serve_by_name_only():
    register_backend("slow", fake(only_by_name=lambda: "it interprets"))
    choice = choose("auto", "auto", n_latents=10, k=1, **CPU)
    assert (choice.backend, choice.refused) == ("reference", {"slow": "it interprets"})
    assert choose("slow", "auto", n_latents=10, k=1, **CPU).backend == "slow"


def test_a_backend_overrides_the_primitives_it_has():
    calls = []

    def select(pre, k):
        calls.append(k)
        return reference.select(pre, k)

    register_backend("selects", fake(select=select))
    x, W_enc = torch.randn(3, 4), torch.randn(10, 4)
    values, indices = encode_topk(x, W_enc, None, 2, backend="selects")
    expected = encode_topk(x, W_enc, None, 2, backend="reference")
    assert calls == [2]
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])
    assert choose("selects", "auto", n_latents=10, k=1, **CPU).ops.gather is reference.gather


def test_a_backend_may_fuse_what_is_composed_elsewhere():
    calls = []

    def backward_latents(values, indices, layout, grad, x_mod, W_dec, extra, grad_W_dec, grad_W_enc, grad_b_enc):
        calls.append("backward_latents")
        return torch.zeros(values.shape)

    def encoder_gradients(grad_pre, x, x_mod, scale, shift, group, norm, W_enc, grad_W_enc, grad_scale, grad_shift):
        calls.append("encoder_gradients")

    register_backend("fuses", fake(backward_latents=backward_latents, encoder_gradients=encoder_gradients))
    for regime in ("sparse", "dense"):
        p = random_problem(6, 4, 10, 2, dtype=torch.float32)
        tide_loss(**p.arguments(), backend="fuses", regime=regime).total.backward()
        assert not p.W_enc.grad.any()  # left to the fused primitive, which added nothing
    assert calls == ["backward_latents", "encoder_gradients"]


def test_the_single_launch_is_taken_by_name_or_where_it_was_measured_to_win():
    marked = (torch.full((3, 2), 7.0), torch.zeros(3, 2, dtype=torch.int32))

    def encode(*_):
        return tuple(t.clone() for t in marked)

    def single_launch(device, dtype, n_tokens, n_latents, k):
        return n_tokens < 3

    register_backend("single", fake(encode=encode, single_launch=single_launch))
    p = random_problem(3, 4, 10, 2, dtype=torch.float32)
    split = encode_topk(p.x, p.W_enc, p.b_enc, 2, backend="single")[0]
    assert torch.equal(split, encode_topk(p.x, p.W_enc, p.b_enc, 2, backend="reference")[0])
    assert torch.equal(encode_topk(p.x, p.W_enc, p.b_enc, 2, backend="single", path="single")[0], marked[0])
    assert torch.equal(encode_topk(p.x[:2], p.W_enc, p.b_enc, 2, backend="single")[0], marked[0])
    assert torch.equal(encode_topk(p.x[:2], p.W_enc, p.b_enc, 2, backend="single", path="split")[0], split[:2])


def test_a_backend_without_a_single_launch_says_so():
    p = random_problem(3, 4, 10, 2)
    with pytest.raises(BackendError, match=r"'reference' has no single-launch encoder: use path='split'"):
        encode_topk(p.x, p.W_enc, p.b_enc, 2, path="single")
    with pytest.raises(ValueError, match=r"path 'whole' is unknown: use one of auto, split, single"):
        encode_topk(p.x, p.W_enc, p.b_enc, 2, path="whole")


def test_registration_keeps_the_reference_last_and_names_unique():
    register_backend("second", fake(), first=False)
    register_backend("first", fake())
    assert list(backend_status()) == ["first", "second", "reference"]
    with pytest.raises(ValueError, match=r"'first' is taken"):
        register_backend("first", fake())
    with pytest.raises(ValueError, match=r"'auto' is taken"):
        register_backend("auto", fake())


def test_the_regime_goes_by_density_and_device():
    register_backend("own", fake(dense_above=lambda device: 0.5))
    assert choose("own", "auto", n_latents=10, k=5, **CPU).regime == "sparse"
    assert choose("own", "auto", n_latents=10, k=6, **CPU).regime == "dense"
    assert choose("own", "dense", n_latents=10, k=1, **CPU).regime == "dense"
    assert choose("reference", "auto", n_latents=18432, k=922, **CPU).regime == "sparse"
    on_gpu = {"device": torch.device("cuda"), "dtype": torch.float32}
    assert choose("reference", "auto", n_latents=18432, k=922, **on_gpu).regime == "dense"
    assert choose("reference", "auto", n_latents=18432, k=32, **on_gpu).regime == "sparse"


def test_importing_needs_torch_alone_and_prints_nothing():
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import tide_kernels\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "foreign = new & {'diffusers', 'transformers', 'triton', 'numpy', 'tide', 'hypothesis', 'pytest'}\n"
        "assert not foreign, foreign\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not {'tide_kernels.triton', 'tide_kernels.native'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_exists():
    import tide_kernels

    assert all(hasattr(tide_kernels, name) for name in tide_kernels.__all__)
