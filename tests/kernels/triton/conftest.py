"""The Triton backend: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tide_kernels.testing import poisoned

launch = pytest.importorskip("tide_kernels.triton.launch", reason="needs Triton")
specs = pytest.importorskip("tide_kernels.triton.specs", reason="needs Triton")

collect_ignore_glob = [] if launch.INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True)
def _results_start_as_nan(monkeypatch):
    """Exposes elements of a result that no kernel writes."""
    monkeypatch.setattr(launch, "empty", lambda *shape, dtype, device: poisoned(shape, dtype, device))


def _choices(kernel, arguments):
    """What decides which branches of a kernel are compiled: arguments that are None, or not, and flags."""
    decisive = {name: value for name, value in arguments.items() if name in kernel.arg_names}
    return {(name, value if value is None or isinstance(value, bool) else "given") for name, value in decisive.items()}


@pytest.fixture(scope="session")
def compiled_ahead():
    """The choices for which each kernel is compiled ahead of time."""
    found = {}
    for record in specs.collect():
        choices = _choices(record.kernel, record.signature | record.constexprs)
        found.setdefault(record.kernel.__name__, set()).update(choices)
    return found


@pytest.fixture(autouse=True)
def _launches_are_compiled_ahead_of_time(monkeypatch, compiled_ahead):
    """The interpreter runs branches that a compiler may refuse."""
    run = launch.launch

    def checked(kernel, grid, device, *arguments, **keywords):
        choices = _choices(kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | keywords)
        missing = choices - compiled_ahead.get(kernel.__name__, choices)
        assert not missing, f"no record of {kernel.__name__} has {sorted(map(str, missing))}: add one to its AOT"
        run(kernel, grid, device, *arguments, **keywords)

    monkeypatch.setattr(launch, "launch", checked)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def normal(device, generator):
    """Makes normally distributed tensors, in float64 first, so that all dtypes see the same numbers."""

    def make(*shape, dtype=torch.float32, size=1.0):
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * size
        return values.to(device=device, dtype=dtype)

    return make


@pytest.fixture(params=["scale and shift by group", "a single group", "shift alone", "nothing"])
def modulation(request, normal, device, generator):
    """Makes scale, shift and group; group 3 of 4 has no token."""

    def make(n_tokens, d_model, dtype):
        scale, shift = normal(4, d_model, dtype=dtype, size=0.3), normal(4, d_model, dtype=dtype, size=0.3)
        group = torch.randint(3, (n_tokens,), generator=generator).to(device)
        return {
            "scale and shift by group": (scale, shift, group),
            "a single group": (scale[1:2], shift[1:2], None),
            "shift alone": (None, shift, group),
            "nothing": (None, None, None),
        }[request.param]

    return make


@pytest.fixture(
    params=[
        pytest.param((1, 1, 1, 1), id="one of everything"),
        pytest.param((5, 3, 17, 70), id="d of one full and one masked tile"),
        pytest.param((33, 5, 23, 130), id="popular latents: several pieces of places"),
        pytest.param((3, 9, 4, 16), id="k above n: every latent repeated"),
    ]
)
def sizes(request):
    """The sizes n_tokens, k, n_latents, d_model of a code and its products."""
    return request.param


@pytest.fixture
def code(normal, device, generator):
    """Makes a code in any order, with repeats and with unused places (whose values are NaN) anywhere."""

    def make(n_tokens, k, n_latents, dtype):
        indices = torch.randint(-1, n_latents, (n_tokens, k), generator=generator, dtype=torch.int32)
        indices[:, 0] = 0  # popular
        indices[n_tokens // 2] = -1
        values = normal(n_tokens, k, dtype=dtype)
        values[indices.to(device) < 0] = torch.nan
        return values, indices.to(device)

    return make


@pytest.fixture
def masked(normal):
    """A masked chunk, and its gradient and weights."""

    def make(n_tokens, n_latents, d_model, dtype):
        z = normal(n_tokens, n_latents, dtype=dtype).relu()
        return z, normal(n_tokens, d_model, dtype=dtype), normal(n_latents, d_model, dtype=dtype)

    return make
