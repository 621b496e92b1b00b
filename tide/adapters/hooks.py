"""Reading and replacing image tokens inside a transformer while it runs."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tide.adapters.aside import is_aside
from tide.adapters.base import INPUTS, TENSORS, Adapter, Block, Embedded, GivenRows, TokenView, check_tensor
from tide.adapters.compiled import eagerly
from tide.adapters.gate import gate_of
from tide.adapters.guidance import Guidance, watch_guidance
from tide.adapters.skips import check_nothing_skips
from tide.errors import TideError, TideWarning
from tide.sae.config import TARGETS, input_of
from tide.sae.position import Position


@dataclass(frozen=True)
class Call(Position):
    """One call of the transformer, read from its own arguments: the position of its image tokens, and more.

    ``timestep [B]`` float32, the scheduler's; ``conditioning [B, d_embedding]`` float32, or None where the model
    adds nothing to its timestep embedding; ``conditional [B]`` bool, on the CPU: the rows that belong to the prompt
    rather than to guidance. B counts the rows of this call, guidance included; each row is the group of its tokens.
    ``inputs [B, T, d_model]`` are the image tokens that enter the tapped module, if :func:`tap` was asked for them.
    ``grid`` holds their rows and columns, or None where the call does not say.

    Attributes:
        timestep: ``[B]`` float32, the scheduler's.
        conditioning: ``[B, d_embedding]`` float32, or None.
        group: as in :class:`~tide.sae.Position`; None, because each row of the call is a group.
        conditional: ``[B]`` bool on the CPU.
        inputs: ``[B, T, d_model]``, or None.
        grid: rows and columns of the tokens (of a video frames before them), or None.
    """

    timestep: Tensor
    _: KW_ONLY
    conditional: Tensor
    inputs: Tensor | None = None
    grid: tuple[int, ...] | None = None

    @property
    def batch_size(self) -> int:
        """Rows of this call, guidance included."""
        return len(self.timestep)

    def take(self, rows: Tensor) -> Call:
        """The call's ``rows``, bool ``[B]``."""
        there = rows.to(self.timestep.device)
        conditioning = None if self.conditioning is None else self.conditioning[there]
        inputs = None if self.inputs is None else self.inputs[rows.to(self.inputs.device)]
        conditional = self.conditional[rows.to(self.conditional.device)]
        return Call(self.timestep[there], conditioning, conditional=conditional, inputs=inputs, grid=self.grid)

    def beside(self, x: Tensor) -> Call:
        """The call on the device of ``x``: a transformer may be spread over several."""
        if all(each is None or each.device == x.device for each in (self.timestep, self.conditioning, self.inputs)):
            return self
        conditioning, inputs = (
            None if each is None else each.to(x.device) for each in (self.conditioning, self.inputs)
        )
        return replace(self, timestep=self.timestep.to(x.device), conditioning=conditioning, inputs=inputs)


#: Gets the image tokens ``[B, T, d_model]``; returns their replacement, or None to leave the output as it is.
Tap = Callable[[Tensor, Call], Tensor | None]
#: Gets the arguments of a call of the transformer by name, its rows of the prompt, bool ``[B]`` on the CPU, and the
#: scheduler's timestep ``[B]``; returns the arguments that it replaces, or None.
Before = Callable[[Mapping[str, Any], Tensor, Tensor], Mapping[str, Any] | None]
#: Block -> its function (keys of a Mapping are invariant, hence both).
Taps = Mapping[int, Tap] | Mapping[Block, Tap]


def of_prompt(keep: Callable[[Tensor, Call], None]) -> Tap:
    """A tap's function that shows ``keep`` the rows that belong to the prompt, and nothing of a call for the negative
    prompt alone."""

    def show(x: Tensor, call: Call) -> None:
        if call.conditional.any():
            keep(x[call.conditional.to(x.device)], call.take(call.conditional))

    return show


def _where_it_runs(
    transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments on the device of the call. accelerate's offloading moves weights and arguments there inside
    ``forward``, which starts after a forward pre-hook, and the conditioning is made by the transformer's own layers;
    moving them twice changes nothing."""
    offload = getattr(transformer, "_hf_hook", None)
    return (args, kwargs) if offload is None else offload.pre_forward(transformer, *args, **kwargs)


class _Stopped(Exception):
    """Ends a forward pass after the last tapped block."""


@contextmanager
def tap(
    adapter: Adapter,
    taps: Taps,
    tensor: str = "output",
    *,
    stop_after: bool = False,
    inputs: bool = False,
    before: Before | None = None,
) -> Iterator[None]:
    """While the context is open, calls each block's function with its image tokens at every pass.

    ``tensor`` says which: one of :data:`~tide.adapters.base.TENSORS`, or one of :data:`~tide.adapters.base.INPUTS`,
    for which functions must return None. With ``inputs``, for attention and feed-forward, the calls also have the
    tokens that enter the module (:attr:`Call.inputs`). ``before`` is called ahead of every pass and may replace
    arguments of the transformer, such as the states of the prompt's text.

    A returned tensor, of the same shape, replaces the image tokens (in the output's dtype). None passes on
    the very output object that the block made. With ``stop_after`` the pass ends by an exception once the
    last tapped block has run: use :func:`run_until`. Hooks are removed when the context closes, however it
    closes and whatever other contexts are still open.

    A compiled transformer runs eagerly meanwhile, because compiled code does not call hooks. Raises
    :class:`~tide.errors.TideError` if something skips blocks (the caches of diffusers, see
    :mod:`tide.adapters.skips`), even if that shows only during a pass; warns (:class:`~tide.errors.TideWarning`) if the
    pipeline ran and never called this transformer.

    Args:
        adapter: of the transformer.
        taps: block -> a function of its image tokens ``[B, T, d_model]`` and the :class:`Call`.
        tensor: what of the block.
        stop_after: end the pass after the last tapped block.
        inputs: also hand over what enters the module.
        before: called ahead of every pass.
    """
    check_tensor(tensor, read=True)
    if inputs and tensor not in TARGETS:
        raise TideError(f"{tensor} has no input to read beside it; use {' or '.join(TARGETS)}")
    resolved = _resolved(adapter, taps)
    if stop_after and not resolved:
        raise TideError("no block to stop after; name at least one")
    check_nothing_skips(adapter.transformer)
    gate = gate_of(adapter.transformer)
    with gate.tapped(), watch_guidance(adapter.pipe, adapter.transformer) as guidance, ExitStack() as stack:
        passes = _Passes(adapter, resolved, tensor, guidance, max(resolved) if stop_after else None, inputs, before)
        stack.enter_context(eagerly(getattr(adapter.pipe, adapter.component), adapter.transformer))
        stack.callback(passes.remove)
        passes.install()
        yield
    if guidance.ran and resolved and not passes.n_passes and not adapter.runs_in_turn:
        warnings.warn(
            "the pipeline ran and did not call the transformer that is tapped; was pipe.transformer replaced?",
            TideWarning,
            stacklevel=3,
        )


def _resolved(adapter: Adapter, taps: Taps) -> dict[int, Tap]:
    resolved: dict[int, Tap] = {}
    for block, function in taps.items():
        index = adapter.resolve_block(block)
        if index in resolved:
            raise TideError(f"block {index} is tapped twice; give each block one function")
        resolved[index] = function
    return resolved


@dataclass(eq=False)
class _Passes:
    """The hooks of one :func:`tap`, and what they know about the current pass."""

    adapter: Adapter
    functions: dict[int, Tap]
    tensor: str
    guidance: Guidance
    last: int | None
    inputs: bool
    before: Before | None = None
    #: Tapped block -> where its image tokens are in the current pass.
    views: dict[int, TokenView] = field(default_factory=dict)
    #: Tapped block -> its call in the current pass; empty between passes.
    calls: dict[int, Call] = field(default_factory=dict)
    #: The tapped blocks that have not run yet in this pass.
    awaited: set[int] = field(default_factory=set)
    n_passes: int = 0
    #: Tapped block -> the modules whose outputs tell its conditioning.
    embedded: dict[int, Embedded | GivenRows] = field(default_factory=dict)
    #: What those modules returned in this pass.
    parts: dict[nn.Module, Any] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)
    handles: list[RemovableHandle] = field(default_factory=list)

    def install(self) -> None:
        """Registers the hooks; :meth:`remove` also removes a part of them, if an interrupt comes in between."""
        transformer = self.adapter.transformer
        self.handles.append(transformer.register_forward_pre_hook(self.before_pass, with_kwargs=True))
        for index in self.functions:
            module = self.adapter.hook_module(index, self.tensor)
            self.handles.append(module.register_forward_hook(partial(self.after_block, index), with_kwargs=True))
        self.embedded = {i: found for i in self.functions if (found := self.adapter.embedding_of(i)) is not None}
        modules = {
            part
            for each in self.embedded.values()
            for part in ((each.whole, each.time) if isinstance(each, Embedded) else ())
            if part is not None
        }
        for index in (i for i, each in self.embedded.items() if isinstance(each, GivenRows)):
            block = self.adapter.hook_module(index)
            self.handles.append(block.register_forward_pre_hook(partial(self.before_block, index), with_kwargs=True))
        for part in modules:
            self.handles.append(part.register_forward_hook(self.after_part))
        self.handles.append(transformer.register_forward_hook(self.after_pass))
        _OPEN.setdefault(transformer, []).append(self)

    def remove(self) -> None:
        others = [each for each in _OPEN.pop(self.adapter.transformer, []) if each is not self]
        if others:
            _OPEN[self.adapter.transformer] = others
        while self.handles:
            self.handles.pop().remove()

    @property
    def elsewhere(self) -> bool:
        """Whether this pass is one that no tap sees (:mod:`tide.adapters.aside`), or another thread's, and these hooks
        are of the one pass of :func:`run_until`."""
        return is_aside() or (self.last is not None and threading.get_ident() != self.thread)

    def before_pass(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.elsewhere:
            return None
        given = args, kwargs
        adapter = self.adapter
        check_nothing_skips(adapter.transformer)
        conditional = adapter.conditional_of(args, kwargs, self.guidance)
        args, kwargs = _where_it_runs(adapter.transformer, args, kwargs)
        self.views = adapter.token_views(self.functions, args, kwargs)
        self.parts = {}
        timestep = adapter.timestep_of(args, kwargs)
        grid = adapter.grid_of(args, kwargs)
        self.calls = {
            index: Call(timestep, conditioning, conditional=conditional, grid=grid)
            for index, conditioning in adapter.conditioning_of_blocks(self.functions, args, kwargs).items()
        }
        self.awaited = set(self.functions) - set(adapter.arguments(args, kwargs).get("skip_layers") or ())
        self.guidance.started = True
        self.n_passes += 1
        if self.before is None:
            return None
        changes = self.before(adapter.arguments(args, kwargs), conditional, timestep)
        if changes is None:
            return None
        changed = adapter.with_arguments(*given, changes)
        for each in _OPEN.get(adapter.transformer, ()):
            each.look_again(*changed)
        return changed

    def look_again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Where the image tokens are (Lumina 2) and what modulates them (Lumina-Next) may depend on the text, which any
        of the open taps may have replaced after this one looked."""
        if self.calls:
            args, kwargs = _where_it_runs(self.adapter.transformer, args, kwargs)
            self.views = self.adapter.token_views(self.functions, args, kwargs)
            conditioning = self.adapter.conditioning_of_blocks(self.functions, args, kwargs)
            self.calls = {index: replace(call, conditioning=conditioning[index]) for index, call in self.calls.items()}

    def after_block(
        self, index: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self.elsewhere:
            return None
        if index not in self.calls:
            raise TideError(f"block {index} ran outside its transformer; call the transformer")
        if index not in self.awaited and self.tensor.startswith("feed_forward"):
            return None  # it also runs on the text, behind the image (CogView4)
        self.awaited.discard(index)
        call, view = self.calls[index], self.views[index]
        if index in self.embedded:
            call = replace(call, conditioning=self.conditioning(self.embedded[index], index))
        if self.inputs:
            call = replace(call, inputs=self.tokens_in(view, input_of(self.tensor), args, kwargs))
        if self.tensor in INPUTS:
            tokens = self.tokens_in(view, self.tensor, args, kwargs)
        else:
            tokens = view.image_tokens(output, self.tensor)
        replacement = self.functions[index](tokens, call.beside(tokens))
        if replacement is not None:
            if self.tensor in INPUTS:
                raise TideError(f"{self.tensor} is read and not replaced; replace one of {', '.join(TENSORS)}")
            if replacement.shape != tokens.shape:
                raise TideError(
                    f"the replacement for block {index} has shape {list(replacement.shape)}; "
                    f"its tokens have {list(tokens.shape)}"
                )
            output = view.with_image_tokens(output, replacement.to(tokens), self.tensor)
        if index == self.last:
            raise _Stopped
        return None if replacement is None else output

    def after_part(self, module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if not self.elsewhere:
            self.parts[module] = output

    def before_block(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self.embedded[index]
        if not self.elsewhere and isinstance(given, GivenRows):
            arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            self.parts[module] = arguments[given.argument][:, given.rows].flatten(1).float()

    def conditioning(self, embedded: Embedded | GivenRows, index: int) -> Tensor:
        """What the model added to its timestep embedding in this pass, or what it gave the block in the place of one,
        ``[B, d_embedding]`` float32."""
        if isinstance(embedded, GivenRows):
            given: Tensor = self.parts[self.adapter.hook_module(index)]
            return given
        if embedded.whole not in self.parts or embedded.time not in {None, *self.parts}:
            raise TideError(
                f"the timestep embedding of {self.adapter.family} was not made in this call; take off what compiles or "
                "replaces it"
            )
        whole = self.parts[embedded.whole]
        whole = (whole if embedded.part is None else whole[embedded.part]).detach().float()
        if embedded.time is None:  # which may be the same for all rows
            return whole.expand(self.calls[index].batch_size, -1)
        return whole - self.parts[embedded.time].detach().to(whole)

    def tokens_in(self, view: TokenView, tensor: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The image tokens that entered a module, whose hidden states are its first argument."""
        given = args[0] if args else kwargs.get("hidden_states")
        tokens = given if given is None else view.image_tokens(given, tensor)
        if not isinstance(tokens, Tensor) or tokens.dim() != 3:
            raise TideError(
                f"the adapter of {self.adapter.family} does not find the image tokens in {tensor}; "
                "let its image_tokens return them as [rows, tokens, d_model]"
            )
        return tokens

    def after_pass(self, *_: Any) -> None:
        if self.elsewhere:
            return
        self.calls, self.parts = {}, {}
        if self.awaited:
            raise TideError(
                f"block {min(self.awaited)} did not run in a call of the transformer, or ran where hooks are not "
                "called; take off what caches, skips or compiles its blocks"
            )


#: Transformer -> the taps that are open.
_OPEN: WeakKeyDictionary[nn.Module, list[_Passes]] = WeakKeyDictionary()


def run_until(
    adapter: Adapter, taps: Taps, run: Callable[[], Any], tensor: str = "output", *, inputs: bool = False
) -> None:
    """Calls ``run``, which runs the transformer once, and stops it after the last tapped block.

    Args:
        adapter: of the transformer.
        taps: block -> a function of its image tokens.
        run: runs the transformer once.
        tensor, inputs: as for :func:`tap`.
    """
    try:
        with tap(adapter, taps, tensor, stop_after=True, inputs=inputs):
            run()
    except _Stopped:
        pass
