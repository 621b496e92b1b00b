"""The library as a backend: when it cannot serve and the reasons it gives; its variants; a whole step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tide_kernels import encode_topk, memory, native, reference, tide_loss
from tide_kernels.testing import assert_close, random_problem

CPU = torch.device("cpu")


def test_refusals_name_the_reason():
    assert native.refuses(CPU, torch.float32, 100, 5) is None
    assert native.refuses(CPU, torch.bfloat16, 100, 5) is None
    assert native.refuses(CPU, torch.float64, 100, 5) == "it serves float32 and bfloat16, not float64"
    assert native.refuses(CPU, torch.float16, 100, 5) == "it serves float32 and bfloat16, not float16"
    assert native.refuses(torch.device("cuda"), torch.float32, 100, 5) == "it runs on the CPU, the tensors are on cuda"
    assert "int32" in native.refuses(CPU, torch.float32, 2**31, 5)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch is built for CUDA")
def test_without_cuda_the_cuda_operators_say_so():
    assert native.cuda_unavailable() == "this PyTorch is not built for CUDA"


def test_a_library_that_is_missing_or_broken_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.delenv("TIDE_NATIVE_LIBRARY", raising=False)
    missing = native._library.__wrapped__()
    assert missing.startswith("not built: ")
    assert "pip install --no-build-isolation" in missing
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(native, "_pure", lambda: False)
    assert native._library.__wrapped__().startswith("not built: no C++ compiler; run pip install")
    monkeypatch.setattr(native, "_pure", lambda: True)
    assert native._library.__wrapped__().startswith("not built: this is the pure-Python build, made without torch; run")
    with monkeypatch.context() as windows:
        windows.setattr(native.sys, "platform", "win32")
        assert native._library.__wrapped__().startswith("there are no compiled kernels for Windows")
    (tmp_path / "_native_cpu.abi3.so").write_text("no library\n")
    broken = native._library.__wrapped__()
    assert broken.startswith("_native_cpu.abi3.so cannot be loaded: ")
    assert "\n" not in broken


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pre_activations(dtype, biased):
    x, W = torch.randn(9, 40).to(dtype), torch.randn(70, 40).to(dtype)
    bias = torch.randn(70).to(dtype) if biased else None
    expected = reference.pre_activations(x.double(), W.double(), None if bias is None else bias.double())
    actual = native.pre_activations(x, W, bias)
    assert actual.dtype == dtype
    # A backend may apply the ReLU here or leave it to the selection.
    assert_close(actual.relu(), expected.relu(), 1e-5 if dtype == torch.float32 else 3e-2)
    assert native.pre_activations(x[:0], W, bias).shape == (0, 70)


def test_rows_that_lie_whole_are_not_copied():
    whole = torch.zeros(4, 6)
    apart = whole[:, :5]
    assert native._whole_rows(whole) is whole
    assert native._whole_rows(apart) is apart
    assert native._whole_rows(whole.T).is_contiguous()


@pytest.mark.parametrize("regime", ["sparse", "dense"])
def test_gradients_of_a_whole_step(regime):
    gradients = {}
    for backend, dtype in (("reference", torch.float64), ("native", torch.float32)):
        problem = random_problem(64, 48, 160, 12, groups=3, dtype=dtype)
        terms = tide_loss(**problem.arguments(), chunk=24, backend=backend, regime=regime)
        terms.total.backward()
        gradients[backend] = {name: p.grad for name, p in problem.parameters().items()}
    for name, expected in gradients["reference"].items():
        assert_close(gradients["native"][name], expected, 1e-4, name)


@pytest.mark.parametrize("options", [{}, {"chunk": 24}, {"k_aux": 5}], ids=str)
@pytest.mark.parametrize(
    "wanted", [("W_enc", "W_dec", "b_enc"), ("W_dec",), ("W_enc",), ("scale", "W_dec"), ("b_enc",)], ids="+".join
)
def test_gradients_are_written_where_they_have_no_values(monkeypatch, options, wanted):
    # More latents than places: some have none.
    problem = random_problem(64, 48, 1600, 12, groups=3, dtype=torch.float32)
    parameters = problem.parameters()
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted)
    arguments = problem.arguments() | options
    if "k_aux" in options:
        arguments["dead"] = torch.arange(1600) % 3 == 0
    added = {name: torch.zeros_like(parameters[name]) for name in wanted}
    tide_loss(**arguments, backend="native", gradients=added)
    monkeypatch.setattr(memory, "empty", lambda shape, dtype: torch.full(tuple(shape), torch.nan, dtype=dtype))
    tide_loss(**arguments, backend="native").total.backward()
    assert all(torch.equal(parameters[name].grad, added[name]) for name in wanted)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, True),
        ({"chunk": 32}, False),
        ({"regime": "dense"}, False),
        ({"dead": torch.arange(160) < 9, "k_aux": 4}, False),
        ({"backend": "reference"}, False),
        ({"wanted": ("W_dec",)}, False),
    ],
    ids=["one walk", "chunks", "dense", "dead latents", "another backend", "nothing of the encoder"],
)
def test_squares_of_a_step_where_one_walk_finishes_its_gradients(options, known):
    problem = random_problem(64, 48, 160, 12, groups=3, dtype=torch.float32, requires_grad=False)
    wanted = options.get("wanted", problem.parameters())
    gradients = {name: torch.full_like(p, 0.01) for name, p in problem.parameters().items() if name in wanted}
    squares = torch.tensor(-1.0, dtype=torch.float64)
    arguments = {"chunk": 64, "backend": "native", "regime": "sparse"} | options
    arguments.pop("wanted", None)
    tide_loss(**problem.arguments(), gradients=gradients, squares=squares, **arguments)
    if not known:
        assert float(squares) == -1
        return
    exact = sum(float(gradients[name].double().square().sum()) for name in ("W_enc", "b_enc", "W_dec"))
    assert float(squares) == pytest.approx(exact, rel=1e-6)


START = 0.3


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk": 32}, {"regime": "dense"}, {"dead": torch.arange(160) < 9, "k_aux": 4}, {"backend": "reference"}],
    ids=["one walk", "chunks", "dense", "dead latents", "another backend"],
)
@pytest.mark.parametrize("left_out", [(), ("W_enc", "b_enc", "scale", "shift"), ("W_dec", "b_dec")], ids=str)
def test_gradients_start_where_they_are_told_to(options, left_out):
    problem = random_problem(64, 48, 160, 12, groups=3, dtype=torch.float32, requires_grad=False)
    wanted = {name: p for name, p in problem.parameters().items() if name not in left_out}
    added = {name: START * p if name in ("W_enc", "W_dec") else torch.zeros_like(p) for name, p in wanted.items()}
    started = {name: torch.full_like(p, torch.nan) for name, p in wanted.items()}
    arguments = {"chunk": 64, "backend": "native", "regime": "sparse"} | options
    tide_loss(**problem.arguments(), gradients=added, **arguments)
    tide_loss(**problem.arguments(), gradients=started, start=START, **arguments)
    for name, expected in added.items():
        assert torch.equal(started[name], expected), name


def test_gradients_of_no_tokens_are_zero(monkeypatch):
    monkeypatch.setattr(memory, "empty", lambda shape, dtype: torch.full(tuple(shape), torch.nan, dtype=dtype))
    problem = random_problem(64, 48, 160, 12, dtype=torch.float32)
    tide_loss(**(problem.arguments() | {"x": torch.zeros(0, 48)}), backend="native").total.backward()
    assert not problem.parameters()["W_dec"].grad.any()


def test_the_same_code_as_the_reference_from_the_same_pre_activations():
    # Small integers: every product is exact, so both see the same pre-activations, ties included.
    generator = torch.Generator().manual_seed(0)
    x, W_enc = (torch.randint(-3, 4, shape, generator=generator).float() for shape in ((20, 16), (300, 16)))
    actual, expected = (encode_topk(x, W_enc, None, 15, backend=name) for name in ("native", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.skipif("TIDE_NATIVE_ISA" in os.environ, reason="this is the run of a variant")
class TestVariants:
    def run(self, isa, *command):
        environment = {**os.environ, "TIDE_NATIVE_ISA": isa}
        return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)

    @pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
    def test_every_variant_passes_these_tests(self, isa):
        asked = self.run(isa, "-c", "from tide_kernels import native as n; print(n.unavailable(), n.instruction_set())")
        if "does not have it" in asked.stdout:
            pytest.skip(asked.stdout)
        assert asked.stdout.split() == ["None", isa], asked.stderr
        if isa == native.instruction_set():
            pytest.skip(f"{isa} is what the other tests run with")
        folder = Path(__file__).parent
        options = ["-q", "-x", "-p", "no:cacheprovider", f"--confcutdir={folder.parent}"]
        # What does not run the CPU's kernels is the same for every variant.
        options += [f"--ignore={folder / name}" for name in ("test_build.py", "test_cuda.py", "test_cuda_gpu.py")]
        done = self.run(isa, "-m", "pytest", *options, str(folder))
        assert done.returncode == 0, done.stdout

    def test_an_unknown_variant_makes_the_backend_unavailable(self):
        done = self.run("sse9", "-c", "from tide_kernels import native; print(native.unavailable())")
        assert done.stdout == "TIDE_NATIVE_ISA=sse9: unknown; use avx512bf16, avx512, avx2 or generic\n"
