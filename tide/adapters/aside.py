"""One more pass of a transformer in the middle of another one, which no tap sees."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tide.adapters.base import Adapter, Text
from tide.errors import TideError

#: Arguments without a row for each image, however long their first dimension is.
_WITHOUT_ROWS = ("image_rotary_emb", "img_ids", "txt_ids")
#: What some families encode with the prompts and is the call's own.
_OF_CALL = "guidance"

_passes = threading.local()


def is_aside() -> bool:
    """Whether this thread is in such a pass."""
    return getattr(_passes, "aside", False)


class _Stopped(Exception):
    """Ends the pass after the block."""


@dataclass
class Heard:
    """The arguments of the transformer's current pass, while :func:`hear` is open."""

    adapter: Adapter
    arguments: dict[str, Any] = field(default_factory=dict)

    def keep(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not is_aside():
            arguments = self.adapter.arguments(args, kwargs)
            self.arguments = {name: value for name, value in arguments.items() if name != "self"}

    @torch.no_grad()
    def with_text(self, text: Text, rows: Tensor, block: int, tensor: str = "output") -> Tensor:
        """The image tokens ``[images, T, d_model]`` that ``block`` has in a pass with the same arguments, except that
        the prompts are ``text``: of the call's ``rows`` alone, bool ``[B]``, and up to the block.

        ``text`` holds a row for each image, or one for all images of a prompt, as :meth:`Adapter.encode_prompts` makes
        it. Raises :class:`~tide.errors.TideError` if it does not divide the images.
        """
        adapter = self.adapter
        # Where latents are a list of images (Z-Image), lists hold a row each; elsewhere their elements hold rows.
        listed = isinstance(self.arguments.get(adapter.latents_argument), list)
        arguments = _of_rows(self.arguments, rows, listed)
        words = {name: _repeated(value, int(rows.sum())) for name, value in text.items() if name != _OF_CALL}
        arguments |= adapter.text_arguments(words, adapter.n_images_of((), arguments))
        view, found = adapter.token_views([block], (), arguments)[block], []

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            found.append(view.image_tokens(output, tensor))
            raise _Stopped

        handle = adapter.hook_module(block, tensor).register_forward_hook(keep)
        _passes.aside = True
        try:
            adapter.transformer(**arguments)
        except _Stopped:
            pass
        finally:
            _passes.aside = False
            handle.remove()
        if not found:
            raise TideError(f"block {block} did not run in a pass beside; take off what caches or skips its blocks")
        return found[0]


@contextmanager
def hear(adapter: Adapter) -> Iterator[Heard]:
    """Keeps the arguments of every pass while it is open; the hook is removed when it closes."""
    heard = Heard(adapter)
    handle = adapter.transformer.register_forward_pre_hook(heard.keep, with_kwargs=True)
    try:
        yield heard
    finally:
        handle.remove()
        heard.arguments = {}


def _of_rows(arguments: Mapping[str, Any], rows: Tensor, listed: bool) -> dict[str, Any]:
    """The arguments of these rows of the call; what holds no rows is passed on."""
    if rows.all():
        return dict(arguments)
    return {
        name: value if name in _WITHOUT_ROWS else _taken(value, rows, listed)
        for name, value in arguments.items()
        if value is not None
    }


def _taken(value: Any, rows: Tensor, listed: bool) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim and len(value) == len(rows) else value
    if isinstance(value, dict):
        return {name: _taken(each, rows, listed) for name, each in value.items()}
    if listed and isinstance(value, list) and len(value) == len(rows):
        return [each for each, chosen in zip(value, rows.tolist(), strict=True) if chosen]
    return type(value)(_taken(each, rows, listed) for each in value) if type(value) in (list, tuple) else value


def _repeated(value: Tensor, n_images: int) -> Tensor:
    if n_images % len(value):
        raise TideError(f"{len(value)} prompts do not fit {n_images} images; give one for all or one an image")
    return value.repeat_interleave(n_images // len(value), 0)
