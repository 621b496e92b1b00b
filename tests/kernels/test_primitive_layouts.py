"""Every tensor argument of every backend's primitives in every layout.

A primitive has to read any layout. It may refuse to write to some layouts, but must never return a wrong result
without an error. Primitives come from `Primitives`, arguments from the annotations of each backend.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.layouts import LAYOUTS, Calls, overlaps_itself, plain, tensor_arguments
from tests.helpers.primitives import ARGUMENTS, MODULES, backend_of
from tide_kernels.dispatch import Primitives
from tide_kernels.testing import assert_close

TOLERANCE = 1e-5  # float32, relative to the RMS: sums of at most N LATENTS numbers in another order

WITHOUT_TENSORS = {"zeros", "empty", "walks", "encoder_gradients_pay"}
#: Compiled ops that are no primitives: the optimiser's, see tests/kernels/native/test_adamw.py.
NO_PRIMITIVES = {"tide_native::norm", "tide_native::adamw_"}
#: A code's transposed form, which the backend's own `transpose` makes.
OPAQUE = {"transposed", "layout"}


def own_primitives(module: Any) -> list[str]:
    return [name for name in Primitives.__dataclass_fields__ if hasattr(module, name)]


def run(function: Callable[..., Any], arguments: list[Any]) -> list[Tensor]:
    """The results, followed by the final contents of the tensor arguments."""
    returned = function(*arguments)
    outputs = [returned] if isinstance(returned, Tensor) else list(returned or ())
    return [plain(t) for t in (*outputs, *arguments) if isinstance(t, Tensor)]


def copies(arguments: list[Any]) -> list[Any]:
    return [plain(value) if isinstance(value, Tensor) else value for value in arguments]


def tensors(arguments: list[Any]) -> list[int]:
    return [place for place, value in enumerate(arguments) if isinstance(value, Tensor)]


def written(function: Callable[..., Any], arguments: list[Any]) -> list[int]:
    """The positions of the arguments that a call changes."""
    after = copies(arguments)
    function(*after)
    return [place for place in tensors(arguments) if not torch.equal(after[place], arguments[place])]


def relaid(arguments: list[Any], kinds: dict[int, str]) -> list[Any]:
    return [LAYOUTS[kinds[place]](value) if place in kinds else value for place, value in enumerate(arguments)]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("primitive", ARGUMENTS)
def test_what_is_read_may_lie_anyhow(name, primitive):
    module = backend_of(name)
    if not hasattr(module, primitive):
        pytest.skip(f"{name} has no {primitive} of its own")
    function, kinds = getattr(module, primitive), list(LAYOUTS)
    for build in ARGUMENTS[primitive]:
        read = [place for place in tensors(build(module)) if place not in written(function, build(module))]
        # Interpreted kernels are slow: an argument has five of the nine, and others have the rest.
        for turn in range(0, len(kinds) if read else 0, 2 if name == "triton" else 1):
            chosen = {place: kinds[(turn + 2 * place) % len(kinds)] for place in read}
            given = relaid(build(module), chosen)
            expected = run(function, copies(given))
            for place, (got, want) in enumerate(zip(run(function, given), expected, strict=True)):
                assert_close(got, want, TOLERANCE, f"{primitive}: {place}, {chosen}")


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("primitive", ARGUMENTS)
def test_what_is_written_lies_well_or_is_refused(name, primitive):
    module = backend_of(name)
    if not hasattr(module, primitive):
        pytest.skip(f"{name} has no {primitive} of its own")
    function = getattr(module, primitive)
    for build in ARGUMENTS[primitive]:
        for place in written(function, build(module)):
            for kind in LAYOUTS:
                if kind == "overlapping rows" and (name == "reference" or primitive == "encoder_gradients"):
                    continue  # PyTorch's in-place ops do not notice it, but public ops refuse it
                given = relaid(build(module), {place: kind})
                fresh = copies(given)
                with nullcontext() if kind == "at an offset" else suppress(ValueError, RuntimeError):
                    got = run(function, given)
                    assert not overlaps_itself(given[place]), f"{primitive}: argument {place} {kind}"
                    for result, want in zip(got, run(function, fresh), strict=True):
                        assert_close(result, want, TOLERANCE, f"{primitive}: argument {place} {kind}")


@pytest.mark.parametrize("name", MODULES)
def test_every_tensor_argument_of_every_primitive_is_there(name):
    module = backend_of(name)
    for primitive in set(own_primitives(module)) - WITHOUT_TENSORS:
        function = getattr(module, primitive)
        wanted = set(tensor_arguments(function)) - OPAQUE
        names = function.__code__.co_varnames
        for build in ARGUMENTS[primitive][-1:]:
            assert {names[place] for place in tensors(build(module))} == wanted, primitive


def every_call(module: Any) -> None:
    for primitive in set(own_primitives(module)) - WITHOUT_TENSORS:
        for build in ARGUMENTS[primitive]:
            getattr(module, primitive)(*build(module))


def test_they_call_every_compiled_op(monkeypatch):
    module = backend_of("native")
    monkeypatch.setattr(module, "_screening_pays", lambda *_: True)
    with Calls() as calls:
        every_call(module)
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tide_native::")}
    assert registered - NO_PRIMITIVES <= calls.names


def test_they_launch_every_kernel(monkeypatch):
    module = backend_of("triton")
    from tide_kernels.triton import launch, specs

    launched = set()
    real = launch.launch

    def recorded(kernel: Any, *rest: Any, **keywords: Any) -> None:
        launched.add(kernel.__name__)
        real(kernel, *rest, **keywords)

    monkeypatch.setattr(launch, "launch", recorded)
    every_call(module)
    assert launched >= {record.kernel.__name__ for record in specs.collect()}
