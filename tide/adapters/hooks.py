"""Reading and replacing image tokens inside a transformer while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tide.adapters.base import Adapter, Block, TokenView, check_tensor
from tide.adapters.guidance import watch_guidance
from tide.errors import TideError


@dataclass(frozen=True)
class Call:
    """One call of the transformer, read from its own arguments.

    ``timestep [B]`` float32, the scheduler's; ``conditioning [B, d_embedding]`` float32, or None where the model
    adds nothing to its timestep embedding; ``conditional [B]`` bool, on the CPU: the rows that belong to the prompt
    rather than to guidance. B counts the rows of this call, guidance included.
    """

    timestep: Tensor
    conditioning: Tensor | None
    conditional: Tensor

    @property
    def batch_size(self) -> int:
        return len(self.timestep)

    def take(self, rows: Tensor) -> Call:
        """The call's ``rows``, bool ``[B]``."""
        there = rows.to(self.timestep.device)
        conditioning = None if self.conditioning is None else self.conditioning[there]
        return Call(self.timestep[there], conditioning, self.conditional[rows.to(self.conditional.device)])


#: Gets the image tokens ``[B, T, d_model]``; returns their replacement, or None to leave the output as it is.
Tap = Callable[[Tensor, Call], Tensor | None]
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
    moving twice changes nothing."""
    offload = getattr(transformer, "_hf_hook", None)
    return (args, kwargs) if offload is None else offload.pre_forward(transformer, *args, **kwargs)


class _Stopped(Exception):
    """Ends a forward pass after the last tapped block."""


@contextmanager
def tap(adapter: Adapter, taps: Taps, tensor: str = "output", *, stop_after: bool = False) -> Iterator[None]:
    """While the context is open, calls each block's function with its image tokens at every pass.

    A returned tensor, of the same shape, replaces the image tokens (in the output's dtype). None passes on
    the very output object that the block made. With ``stop_after`` the pass ends by an exception once the
    last tapped block has run: use :func:`run_until`. Hooks are removed when the context closes, however it
    closes.
    """
    check_tensor(tensor)
    resolved: dict[int, Tap] = {}
    for block, function in taps.items():
        index = adapter.resolve_block(block)
        if index in resolved:
            raise TideError(f"block {index} is tapped twice; give each block one function")
        resolved[index] = function
    if stop_after and not resolved:
        raise TideError("no block to stop after; name at least one")
    last = max(resolved) if stop_after else None
    calls: dict[int, Call] = {}
    view: TokenView = adapter

    def before_transformer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal view
        args, kwargs = _where_it_runs(adapter.transformer, args, kwargs)
        view = adapter.token_view(args, kwargs)
        timestep = adapter.timestep_of(args, kwargs)
        conditional = adapter.conditional_of(args, kwargs, guidance)
        for index, conditioning in adapter.conditioning_of_blocks(resolved, args, kwargs).items():
            calls[index] = Call(timestep, conditioning, conditional)
        guidance.started = True

    def after_block(index: int, function: Tap, output: Any) -> Any:
        if index not in calls:
            raise TideError(f"block {index} ran outside its transformer; call the transformer")
        tokens = view.image_tokens(output, tensor)
        replacement = function(tokens, calls[index])
        if replacement is not None:
            if replacement.shape != tokens.shape:
                raise TideError(
                    f"the replacement for block {index} has shape {list(replacement.shape)}; "
                    f"its tokens have {list(tokens.shape)}"
                )
            output = view.with_image_tokens(output, replacement.to(tokens), tensor)
        if index == last:
            raise _Stopped
        return None if replacement is None else output

    with watch_guidance(adapter.pipe) as guidance, ExitStack() as hooks:
        handle = adapter.transformer.register_forward_pre_hook(before_transformer, with_kwargs=True)
        hooks.callback(handle.remove)
        for index, function in resolved.items():
            handle = adapter.hook_module(index, tensor).register_forward_hook(
                lambda _module, _args, output, index=index, function=function: after_block(index, function, output)
            )
            hooks.callback(handle.remove)
        yield


def run_until(adapter: Adapter, taps: Taps, run: Callable[[], Any], tensor: str = "output") -> None:
    """Calls ``run``, which runs the transformer once, and stops it after the last tapped block."""
    try:
        with tap(adapter, taps, tensor, stop_after=True):
            run()
    except _Stopped:
        pass
