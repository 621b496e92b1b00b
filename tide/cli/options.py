"""What the options of commands have in common: groups that several share, and their values by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from tide.cli.values import (
    Count,
    Flag,
    Fraction,
    MaybeBlock,
    MaybeCount,
    MaybeDtype,
    MaybeSize,
    MaybeText,
    Text,
    option,
)

# Each field's name is its option's: --trust-remote-code is ``trust_remote_code``. A group adds no prefix.


@dataclass(frozen=True, kw_only=True)
class Model:
    """The pipeline that is looked into, and where it runs."""

    pipeline: Annotated[str | None, option("P")] = None
    """a diffusers id or folder, or 'scenes' for the bundled one (default: what the checkpoint or the store is of)"""
    device: MaybeText = None
    """cpu, cuda, cuda:1 ... (default: the GPU if there is one)"""
    dtype: MaybeDtype = None
    """default bf16 on a GPU, fp32 on the CPU"""
    offload: Flag = False
    """keep on the GPU only the model that runs (diffusers' model offload)"""
    trust_remote_code: Flag = False
    """run code that comes with the pipeline; read it first"""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images with captions."""

    data: Annotated[str | None, option("D")] = None
    """a folder of images with captions (metadata.jsonl or .txt files), a `datasets` name, or 'scenes' (rendered)"""
    images: MaybeCount = None
    """how many images (default: all; 512 scenes)"""
    size: MaybeSize = None
    """1024 or 768x1024 (default: the pipeline's own)"""
    skip_unreadable: Flag = False
    """leave unreadable images out, with a warning"""
    split: Text = "train"
    """split of a named data set"""
    image_column: Text = "image"
    """of a named data set"""
    caption_column: Text = "text"
    """of a named data set"""


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """The checkpoint."""

    sae: Annotated[str, option("CHECKPOINT")]
    """the folder that `tide train` wrote"""
    block: MaybeBlock = None
    """fail unless the checkpoint is of this block"""
    backend: Text = "auto"
    """auto, reference, triton or native"""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What of an image's activations is taken."""

    tensor: Text = "output"
    """output, attention or feed_forward"""
    token_fraction: Fraction = 1 / 16
    """of each image's tokens"""
    timesteps: Count = 20
    """steps of the grid or the sampling run"""
    no_pairs: Flag = False
    """single timesteps instead of neighbouring pairs"""
    batch_size: Count = 8
    """images a pass"""


@dataclass(frozen=True)
class Option:
    """One option of a command: the ``groups`` that lead to its field, and the field's type."""

    name: str
    groups: tuple[str, ...]
    type: Any

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_flag(self) -> bool:
        return get_args(self.type)[:1] == (bool,)

    @property
    def n_words(self) -> Any:
        """How many words its value has: a number, or "*" for any number of them."""
        for spec in self.notes:
            if isinstance(spec, tyro.constructors.PrimitiveConstructorSpec):
                return spec.nargs
        return "*" if get_origin(get_args(self.type)[0]) in (tuple, list) else 1

    @property
    def notes(self) -> tuple[Any, ...]:
        """The annotations beside its type."""
        return get_args(self.type)[1:]


def options_of(command: type) -> dict[str, Option]:
    """Every option of a command's class, by name and in order."""
    return {each.name: each for each in _walk(command, ())}


def _walk(kind: type, groups: tuple[str, ...]) -> Iterator[Option]:
    hints = get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        hint = hints[each.name]
        if is_dataclass(hint):
            yield from _walk(hint, (*groups, each.name))  # type: ignore[arg-type]
        else:
            yield Option(each.name, groups, hint)


def value_of(command: Any, name: str) -> Any:
    """The value of a parsed command's option."""
    return _value(command, options_of(type(command))[name])


def values_of(command: Any) -> dict[str, Any]:
    """All values of a parsed command, by their options' names."""
    return {name: _value(command, option) for name, option in options_of(type(command)).items()}


def _value(at: Any, option: Option) -> Any:
    for group in option.groups:
        at = getattr(at, group)
    return getattr(at, option.name)
