"""One run of a pipeline, with everything that its transformer, scheduler, text encoders and VAE got and returned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tide.adapters.standins import listened
from tide.probing.values import mapped

#: Says of a module's path whether its values are kept; of all others only their shapes are.
Keep = Callable[[str], bool]


@dataclass
class ModuleCall:
    """One call of a module: what it got and what it returned, copied, or as tensors of the device ``meta``."""

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def first(self) -> Any:
        """Its first argument, by position or by name."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @property
    def hidden(self) -> Any:
        """What TIDE reads as the tokens that enter a module."""
        return self.args[0] if self.args else self.kwargs.get("hidden_states")


@dataclass
class Pass:
    """One call of the transformer: its arguments by name, and the calls of its modules in the order they began."""

    arguments: dict[str, Any]
    calls: list[ModuleCall] = field(default_factory=list)
    output: Any = None

    def call_of(self, path: str) -> ModuleCall | None:
        return next((each for each in self.calls if each.path == path), None)


@dataclass
class Run:
    """What happened in one run of a pipeline.

    Attributes:
        passes: of the transformer.
        encoded: (arguments by name, result) of every call of ``encode_prompt``.
        steps: the arguments by name of every step of the scheduler.
        schedules: what ``set_timesteps`` was given.
        decoded: what the VAE decoded.
        result: what the pipeline returned.
    """

    passes: list[Pass] = field(default_factory=list)
    encoded: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    decoded: list[Tensor] = field(default_factory=list)
    result: Any = None


def bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those of ``**kwargs`` too."""
    signature = inspect.signature(function)
    found = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(parameter.name, {})
    return found


def record(pipe: Any, transformer: nn.Module, arguments: Mapping[str, Any], keep: Keep) -> Run:
    """Runs the pipeline and listens to it."""
    run = Run()
    with torch.no_grad(), _listening(pipe, run), recorded(transformer, keep) as passes:
        run.result = pipe(**arguments)
    run.passes = passes
    return run


@contextmanager
def recorded(transformer: nn.Module, keep: Keep) -> Iterator[list[Pass]]:
    """The passes of a transformer while it is open."""
    passes: list[Pass] = []
    running: list[ModuleCall] = []

    def begin_pass(_: nn.Module, args: Any, kwargs: Any) -> None:
        passes.append(Pass(bound(transformer.forward, args, kwargs)))

    def end_pass(_: nn.Module, _args: Any, output: Any) -> None:
        passes[-1].output = output

    def hooks_of(path: str, module: nn.Module) -> list[Any]:
        copied = _copy if keep(path) else _shape

        def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
            call = ModuleCall(path, mapped(args, copied), mapped(kwargs, copied))
            running.append(call)
            passes[-1].calls.append(call)

        def end(_: nn.Module, _args: Any, output: Any) -> None:
            running.pop().output = mapped(output, copied)

        return [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]

    handles = [transformer.register_forward_pre_hook(begin_pass, with_kwargs=True)]
    for path, module in transformer.named_modules():
        if path:
            handles += hooks_of(path, module)
    handles.append(transformer.register_forward_hook(end_pass))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _shape(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta")


@contextmanager
def _listening(pipe: Any, run: Run) -> Iterator[None]:
    scheduler, vae = pipe.scheduler, getattr(pipe, "vae", None)
    step, schedule = scheduler.step, scheduler.set_timesteps
    with ExitStack() as stack:
        if hasattr(pipe, "encode_prompt"):
            encode = pipe.encode_prompt
            given: list[dict[str, Any]] = []
            stack.enter_context(
                listened(
                    pipe,
                    "encode_prompt",
                    before=lambda *args, **kwargs: given.append(bound(encode, args, kwargs)),
                    after=lambda result: run.encoded.append((given[-1], result)),
                )
            )
        stack.enter_context(
            listened(scheduler, "step", before=lambda *args, **kwargs: run.steps.append(bound(step, args, kwargs)))
        )
        stack.enter_context(
            listened(
                scheduler,
                "set_timesteps",
                before=lambda *args, **kwargs: run.schedules.append(bound(schedule, args, kwargs)),
            )
        )
        if vae is not None:
            stack.enter_context(listened(vae, "decode", before=lambda z, *_, **__: run.decoded.append(_copy(z))))
        yield
