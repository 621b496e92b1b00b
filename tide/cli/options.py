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
    MaybeBlocks,
    MaybeCount,
    MaybeDtype,
    MaybeSize,
    MaybeText,
    Text,
    option,
    read_by,
)

# Each field's name is its option's: --trust-remote-code is ``trust_remote_code``. A group adds no prefix.


@dataclass(frozen=True, kw_only=True)
class Model:
    """The pipeline to analyse, and where it runs."""

    pipeline: Annotated[str | None, read_by(str, "P"), option()] = None
    """a diffusers id or folder, or 'scenes' for the bundled one (default: that of the checkpoint or store)"""
    adapter: Annotated[str | None, read_by(str, "MODULE"), option()] = None
    """module or Python file that registers an adapter of your own for the pipeline; it is run"""
    component: MaybeText = None
    """name of the transformer in a pipeline of several, such as transformer_2 (default: that of the checkpoint, or
    transformer)"""
    device: MaybeText = None
    """device: cpu, cuda, cuda:1, mps, xpu ... (default: the CUDA GPU if there is one, else the CPU)"""
    dtype: MaybeDtype = None
    """number type of the pipeline (default: bf16 on a CUDA or XPU device, else fp32)"""
    offload: Flag = False
    """keep only the running model on the GPU (diffusers' model offload)"""
    trust_remote_code: Flag = False
    """run code that the pipeline brings; read it first"""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images with captions."""

    data: Annotated[str | None, read_by(str, "D"), option()] = None
    """a folder of images with captions (metadata.jsonl, .csv or .parquet, .txt files, or class folders), a data set
    saved by `datasets`, Parquet files, a `datasets` name, or 'scenes' (rendered)"""
    images: MaybeCount = None
    """number of images to use (default: all, or 512 rendered scenes)"""
    size: MaybeSize = None
    """image size in pixels, 1024 or 768x1024; of clips 9x768x1024 (default: the pipeline's own)"""
    skip_unreadable: Flag = False
    """skip unreadable images with a warning"""
    split: Text = "train"
    """split of a data set"""
    image_column: MaybeText = None
    """column of a data set that holds the images (default: image, or the first usual name)"""
    caption_column: MaybeText = None
    """column that holds the captions (default: text, caption, prompt, label, or the first usual name)"""


@dataclass(frozen=True, kw_only=True)
class Images(Data):
    """Images with captions, or by default rendered scenes with the bundled pipeline."""

    images: MaybeCount = None
    """number of images to use at most (default: see --fast)"""


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """The trained SAE or TIDE."""

    sae: Annotated[str, option("CHECKPOINT")]
    """checkpoint folder that `tide train` wrote"""
    block: MaybeBlock = None
    """fail unless the checkpoint was trained on this block"""
    backend: Text = "auto"
    """kernel backend: auto, reference, triton or native"""


@dataclass(frozen=True, kw_only=True)
class Autoencoders:
    """The trained SAE or TIDE of a block, or those of several."""

    sae: Annotated[str, option("CHECKPOINT")]
    """checkpoint folder that `tide train` wrote, or a folder with one for each block: block-0, block-1 ..."""
    block: MaybeBlocks = None
    """take these blocks alone; fail if one is missing"""
    backend: Text = "auto"
    """kernel backend: auto, reference, triton or native"""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Which activations of each image to keep."""

    tensor: Text = "output"
    """what of the block to keep: output, attention or feed_forward"""
    transcoder: MaybeText = None
    """keep what enters attention or feed_forward and what leaves it, for a transcoder from one to the other"""
    token_fraction: Fraction = 1 / 16
    """share of each image's tokens to keep"""
    timesteps: Count = 20
    """steps of the timestep grid or of the sampling run"""
    no_pairs: Flag = False
    """collect single timesteps instead of pairs of neighbouring ones"""
    batch_size: Count = 8
    """images per pass"""


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
