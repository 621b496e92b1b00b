"""What surrounds a conversion: where the SAE was trained, what a foreign folder held, what conversion loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tide.conversion.plain import Plain
from tide.errors import TideError
from tide.files import Write
from tide.files.schema import check_schema
from tide.sae import TIDE, TIDEConfig


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an SAE was trained, as :class:`~tide.sae.TIDEConfig` has it: commands that run a pipeline need the block.

    Files that :func:`~tide.conversion.write_sae` made say it under ``tide``, which the libraries pass over.

    Attributes:
        block: its number.
        family: of the transformer, as the adapter names it.
        pipeline: name or folder.
        tensor: of the block.
        target: of a transcoder, the module that it imitates.
    """

    block: int | None = None
    family: str | None = None
    pipeline: str | None = None
    tensor: str = "output"
    target: str | None = None

    @classmethod
    def of(cls, config: TIDEConfig) -> Origin:
        """That of a checkpoint."""
        return cls(**{each.name: getattr(config, each.name) for each in fields(cls)})

    @classmethod
    def recorded(cls, entry: Any, where: Path) -> Origin:
        """What a file says under ``tide``; nothing where that is None."""
        if entry is None:
            return cls()
        check_schema(entry, cls, f"{where}: tide")
        return cls(**{each.name: entry[each.name] for each in fields(cls) if each.name in entry})

    def joined(self, given: Origin, folder: Path) -> Origin:
        """This with what else is ``given``. Raises :class:`~tide.errors.TideError` if the two contradict each other."""
        usual, found = Origin(), self
        for name, value in asdict(given).items():
            own = getattr(found, name)
            if value == getattr(usual, name) or value == own:
                continue
            if own != getattr(usual, name):
                raise TideError(f"{folder} was made of {name} {own!r}, not {value!r}; leave {name} out")
            found = replace(found, **{name: value})
        if found.block is not None and found.block < 0:
            raise TideError(f"block {found.block} is not a block's number; count from 0")
        return found


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What a library's folder held.

    Attributes:
        kind: the architecture, in the library's own word.
        plain: what it computes.
        config: the library's configuration, as it was read.
        origin: where it was trained, as far as its files say.
        transcodes: whether it reconstructs another tensor than it encodes.
        lost: what of the folder the TIDE has not, a phrase each.
    """

    kind: str
    plain: Plain
    config: Mapping[str, Any]
    origin: Origin = field(default_factory=Origin)
    transcodes: bool = False
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is to be written to a library's folder: its files, and as :class:`Foreign` the kind and what is lost."""

    kind: str
    files: Mapping[Path, Write]
    lost: tuple[str, ...] = ()


def nested_lost(plain: Plain) -> str:
    """The phrase for a loss of ``prefixes``."""
    return f"that the first {', '.join(map(str, plain.prefixes))} latents are dictionaries of their own"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A foreign SAE as ``model``, with its library, its kind there, its ``config`` there and what was lost."""

    model: TIDE
    library: str
    kind: str
    config: Mapping[str, Any]
    lost: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: the library, the kind there, the names of the files, and what was lost."""

    library: str
    kind: str
    files: tuple[str, ...]
    lost: tuple[str, ...]
