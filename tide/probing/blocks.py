"""The lists of blocks of a transformer, and the attention and the feed-forward of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tide.adapters.spec import Place
from tide.probing.geometry import Geometry
from tide.probing.places import at_random, one_channel_moved, place_of, tokens_at, width_of, with_tokens
from tide.probing.recording import ModuleCall, Pass
from tide.probing.values import mapped, tensors_in

#: Channels of a module's output that are changed to see whether it is added to the stream.
_CHANNELS = 4
#: Modules that change no tokens by themselves, or only their size.
_SILENT = (nn.Dropout, nn.Identity, nn.SiLU, nn.GELU, nn.ReLU, nn.ModuleList)


@dataclass(frozen=True)
class Part:
    """A module of a block that gets image tokens and returns what is added to them: its path in the block, and where
    they are in its first argument and its output. ``mixes``: a token's output depends on other tokens; ``alone``: it
    gets no other tokens, such as those of the text."""

    path: str
    input: Place
    output: Place
    mixes: bool
    alone: bool


@dataclass
class FoundList:
    """A list of equal blocks: its path, its blocks, and what was found in the first one."""

    path: str
    blocks: nn.ModuleList
    width: int
    output: Place
    attention: Part | None = None
    feed_forward: Part | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> str:
        """The path of the first block."""
        return f"{self.path}.0"


def candidate_lists(transformer: nn.Module, seen: Pass) -> dict[str, nn.ModuleList]:
    """Lists of modules of one class that all run once a pass, in order, and lie in no other such list."""
    order = [each.path for each in seen.calls]
    found: dict[str, nn.ModuleList] = {}
    for path, module in transformer.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module) or any(path.startswith(f"{o}.") for o in found):
            continue
        members = [f"{path}.{i}" for i in range(len(module))]
        ran = [each for each in order if each in members]
        if ran == members and len({type(each) for each in module}) == 1:
            found[path] = module
    return found


def find_lists(lists: dict[str, nn.ModuleList], plain: Pass, changed: Pass, geometry: Geometry) -> list[FoundList]:
    """Those of ``lists`` whose outputs hold the image tokens, in the order in which they run."""
    found = []
    for path, blocks in lists.items():
        call, other = plain.call_of(f"{path}.0"), changed.call_of(f"{path}.0")
        width = None if call is None else width_of(call.output, geometry.n_tokens)
        if call is None or other is None or width is None:
            continue
        place = place_of(call.output, other.output, geometry, width)
        if place is not None and _moves(call.output, other.output, place, geometry):
            found.append(FoundList(path, blocks, width, place))
    order = [each.path for each in plain.calls]
    return sorted(found, key=lambda each: order.index(each.first))


def _moves(value: Any, changed: Any, place: Place, geometry: Geometry) -> bool:
    """Whether the tokens depend on the latents: as many tokens of something else do not."""
    before, after = (tokens_at(each, place, geometry) for each in (value, changed))
    return not torch.equal(before, after)


class Parts:
    """Looks for attention and feed-forward in the first block of a list, by calling the block and its modules again
    with what they were given."""

    def __init__(self, found: FoundList, plain: Pass, changed: Pass, geometry: Geometry) -> None:
        self.found, self.plain, self.changed, self.geometry = found, plain, changed, geometry
        self.block: Any = found.blocks[0]
        call = plain.call_of(found.first)
        assert call is not None
        self.call: ModuleCall = call

    def find(self) -> list[Part]:
        """The parts in the order in which they run."""
        with torch.no_grad():
            holding = [each for each in self._holding(self.block, self.found.first) if not _is_norm(each[0])]
            parts: list[Part] = []
            for path, part in ((_path, self._part(_path, holding)) for _, _path in holding):
                if part is not None and not any(path.startswith(f"{self.found.first}.{o.path}.") for o in parts):
                    parts.append(part)
        order = [each.path for each in self.plain.calls]
        return sorted(parts, key=lambda each: order.index(f"{self.found.first}.{each.path}"))

    def _holding(self, module: nn.Module, path: str) -> Iterator[tuple[nn.Module, str]]:
        """The modules below one that get and return image tokens, the outer ones first."""
        for name, child in module.named_children():
            below = f"{path}.{name}"
            call = self.plain.call_of(below)
            if call is not None and not isinstance(child, _SILENT) and self._places(below) is not None:
                yield child, below
            yield from self._holding(child, below)

    def _places(self, path: str) -> tuple[Place, Place] | None:
        call, other = self.plain.call_of(path), self.changed.call_of(path)
        if call is None or other is None:
            return None
        places = [
            place_of(value, moved, self.geometry, self.found.width)
            for value, moved in ((call.hidden, other.hidden), (call.output, other.output))
        ]
        return None if None in places else (places[0], places[1])  # type: ignore[return-value]

    def _part(self, path: str, holding: list[tuple[nn.Module, str]]) -> Part | None:
        places = self._places(path)
        if places is None or not self._is_added(path, places[1], holding):
            return None
        mixes, alone = self._mixes(path, *places), self._is_alone(path)
        return Part(path.removeprefix(f"{self.found.first}."), *places, mixes=mixes, alone=alone)

    def _is_alone(self, path: str) -> bool:
        call = self.plain.call_of(path)
        assert call is not None
        given = [each for each in tensors_in((call.args, call.kwargs)) if each.ndim >= 3 and each.is_floating_point()]
        return len(given) == len(list(tensors_in(call.hidden)))

    def _module(self, path: str) -> nn.Module:
        return self.block.get_submodule(path.removeprefix(f"{self.found.first}."))

    def _is_added(self, path: str, place: Place, holding: list[tuple[nn.Module, str]]) -> bool:
        """Whether a change of one channel of the module's output moves that channel alone of the block's output, or of
        what a norm behind it gets, while all modules behind it return what they did: then it is added to the stream."""
        call = self.plain.call_of(path)
        assert call is not None
        own = self._streams(path)
        tokens = tokens_at(call.output, place, self.geometry)
        shares = []
        for channel in range(0, self.found.width, max(1, self.found.width // _CHANNELS)):
            moved = tokens.clone()
            moved[..., channel] += 0.3 * tokens.float().std().to(tokens) + 1e-3
            found = self._run({path: with_tokens(call.output, moved, place, self.geometry)}, path, holding)
            shares += [one_channel_moved(own[name], found[name], channel) for name in own]
        return max(shares) > 0.5

    def _streams(self, path: str) -> dict[str, Tensor]:
        """The image tokens of the block's output, and those that enter norms behind ``path`` and outside of it."""
        streams = {"": tokens_at(self.call.output, self.found.output, self.geometry)}
        order = [each.path for each in self.plain.calls]
        for each in self.plain.calls[order.index(path) + 1 :]:
            inside = each.path.startswith(f"{self.found.first}.") and not each.path.startswith(f"{path}.")
            if inside and _is_norm(self._module(each.path)):
                places = self._places(each.path)
                if places is not None:
                    streams[each.path] = tokens_at(each.hidden, places[0], self.geometry)
        return streams

    def _run(self, outputs: dict[str, Any], path: str, holding: list[tuple[nn.Module, str]]) -> dict[str, Tensor]:
        """:meth:`_streams` when a module returns what ``outputs`` says and the others what they did."""
        order = [each.path for each in self.plain.calls]
        for _, other in holding:
            apart = not other.startswith(f"{path}.") and not path.startswith(f"{other}.")
            if apart and order.index(other) > order.index(path):
                call = self.plain.call_of(other)
                outputs[other] = None if call is None else call.output
        with ExitStack() as stack:
            for each, output in outputs.items():
                handle = self._module(each).register_forward_hook(_First(output))
                stack.callback(handle.remove)
            seen: dict[str, Any] = {}
            for each in self._streams(path):
                if each:
                    hook = partial(_keep_hidden, seen, each, self._places(each)[0], self.geometry)  # type: ignore[index]
                    stack.callback(self._module(each).register_forward_pre_hook(hook, with_kwargs=True).remove)
            result = self.block(*_again(self.call.args), **_again(self.call.kwargs))
        return {"": tokens_at(result, self.found.output, self.geometry), **seen}

    def _mixes(self, path: str, entering: Place, leaving: Place) -> bool:
        """Whether a change of the last image token that enters moves others that leave."""
        call = self.plain.call_of(path)
        assert call is not None
        tokens = tokens_at(call.hidden, entering, self.geometry).clone()
        tokens[:, -1] += at_random(tokens[:, -1].shape, tokens) * tokens.float().std().to(tokens)
        hidden = with_tokens(call.hidden, tokens, entering, self.geometry)

        def moved_too(value: Tensor) -> Tensor:  # some attentions get the same tokens once more, as keys
            same = isinstance(call.hidden, Tensor) and value.shape == call.hidden.shape
            return hidden if same and torch.equal(value, call.hidden) else value.clone()

        args, kwargs = mapped(call.args, moved_too), mapped(call.kwargs, moved_too)
        found = tokens_at(self._module(path)(*args, **kwargs), leaving, self.geometry)
        before = tokens_at(call.output, leaving, self.geometry)
        moved = (found.float() - before.float()).norm(dim=-1)
        return bool(moved[:, :-1].max() > 1e-4 * moved[:, -1].max())


def attention_and_feed_forward(parts: list[Part]) -> tuple[Part | None, Part | None]:
    """The first part that mixes tokens, and the last one behind it that gets nothing but them."""
    attention = next((each for each in parts if each.mixes), None)
    others = parts if attention is None else parts[parts.index(attention) + 1 :]
    return attention, next((each for each in reversed(others) if each.alone), None)


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


class _First:
    """A hook that replaces the output of a module's first call alone: the second may be on the text."""

    def __init__(self, output: Any) -> None:
        self.output, self.called = output, False

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        first, self.called = not self.called, True
        return self.output if first else output


def _keep_hidden(
    seen: dict[str, Any], path: str, place: Place, geometry: Geometry, _: nn.Module, args: Any, kwargs: Any
) -> None:
    if path not in seen:
        seen[path] = tokens_at(args[0] if args else kwargs["hidden_states"], place, geometry).clone()


def _again(values: Any) -> Any:
    """Copies, as a module may change what it is given."""
    return mapped(values, Tensor.clone)
