"""Sparse autoencoders of other libraries as TIDEs, and TIDEs as theirs. No code of a foreign file is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from tide.conversion import dictionary_learning, overcomplete, saelens, sparsify
from tide.conversion.about import Export, Exported, Foreign, Imported, Origin
from tide.conversion.from_tide import plain_of
from tide.conversion.plain import Plain
from tide.conversion.to_tide import UNKNOWN_K, tide_of
from tide.errors import TideError
from tide.files import replace_files
from tide.files.per_block import found_blocks
from tide.sae import TIDE
from tide.sae.checkpoint import WEIGHTS as OWN_WEIGHTS
from tide.sae.position import At, Position


class Library(Protocol):
    """The module of a library: its files' names, and how they are read and made."""

    CONFIG: str
    WEIGHTS: str

    def read(self, folder: Path) -> Foreign: ...

    def export(self, plain: Plain, folder: Path, origin: Origin, record: Mapping[str, Any]) -> Export: ...


#: Name -> module. A folder is of the library whose ``WEIGHTS`` it holds.
LIBRARIES: dict[str, Library] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "overcomplete": overcomplete,
}


def library_of(folder: str | Path) -> str:
    """The library that saved a folder, told by the name of its weights.

    Raises :class:`~tide.errors.TideError` for a folder of none of them, or of several.
    """
    path = Path(folder)
    if not path.is_dir():
        raise TideError(f"{path} is not a folder; give the one that another library saved an SAE to")
    found = [name for name, library in LIBRARIES.items() if (path / library.WEIGHTS).exists()]
    if len(found) > 1:
        raise TideError(
            f"{path} holds SAEs of {' and '.join(found)}; say which one to read (--from-library {found[0]})"
        )
    if found:
        return found[0]
    if (path / OWN_WEIGHTS).exists() or found_blocks(path):
        raise TideError(f"{path} is a TIDE checkpoint; say which library's folder to write (--to)")
    within = sorted(each.parent.name for lib in LIBRARIES.values() for each in path.glob(f"*/{lib.WEIGHTS}"))
    if within:
        raise TideError(f"{path} holds SAEs in folders of their own; give one of them, such as {path / within[0]}")
    names = ", ".join(library.WEIGHTS for library in LIBRARIES.values())
    raise TideError(f"{path} holds no SAE of {', '.join(LIBRARIES)}; give a folder with one of {names}")


def read_sae(
    folder: str | Path, library: str | None = None, *, origin: Origin | None = None, k: int | None = None
) -> Imported:
    """The sparse autoencoder that another library saved, as a TIDE without modulation: the same latents, the same
    reconstruction.

    Args:
        folder: what the library saved; see docs/conversion.md for each one's files.
        library: one of :data:`LIBRARIES`; found out by default.
        origin: where it was trained, as far as the files do not say.
        k: active latents of a token on average, where the files do not say.

    Raises :class:`~tide.errors.TideError` for what is not such a folder, for damaged or contradicting files, and for
    what a TIDE cannot represent.
    """
    path = Path(folder)
    name = library_of(path) if library is None else _known(library)
    foreign: Foreign = LIBRARIES[name].read(path)
    where = foreign.origin.joined(origin or Origin(), path)
    if foreign.transcodes and where.target is None:
        raise TideError(f"{path} is a transcoder; say of which module: attention or feed_forward (--transcoder)")
    if where.target is not None and not foreign.transcodes:
        raise TideError(f"{path} reconstructs what it encodes and is no transcoder; leave the target out")
    plain, lost = foreign.plain, foreign.lost
    if k is not None and plain.k not in (None, k):
        raise TideError(f"{path} has k = {plain.k}, not {k}; leave k out")
    if k is None and plain.k is None:
        lost = (*lost, f"nothing says how many latents are active; k = {min(UNKNOWN_K, plain.n_latents)} stands for it")
    model = tide_of(plain if k is None else replace(plain, k=k), where)
    return Imported(model=model, library=name, kind=foreign.kind, config=dict(foreign.config), lost=lost)


def write_sae(model: TIDE, folder: str | Path, library: str, *, at: At = None) -> Exported:
    """Writes what ``model`` computes as a folder that ``library`` loads; returns what it could not take.

    A modulated model is frozen at the single timestep of ``at``, which it needs; a model without modulation takes none.

    Raises :class:`~tide.errors.TideError` for what :func:`~tide.conversion.from_tide.plain_of` refuses, for what the
    library has not, for a timestep outside 0 to 1000, and for a folder that holds another SAE.
    """
    path, name = Path(folder), _known(library)
    check_free(path, LIBRARIES[name].WEIGHTS)
    origin, timestep = Origin.of(model.config), _timestep(at)
    record = {"tide": {**asdict(origin), "timestep": timestep}}
    made: Export = LIBRARIES[name].export(plain_of(model, at), path, origin, record)
    replace_files(dict(made.files))
    lost = [f"all timesteps but {timestep:g}"] if timestep is not None else []
    lost += ["all conditionings but the one given"] if _is_conditioned(model) else []
    lost += ["which images it was trained on"] if model.trained_on is not None else []
    return Exported(
        library=name, kind=made.kind, files=tuple(each.name for each in made.files), lost=(*lost, *made.lost)
    )


def _known(library: str) -> str:
    if library not in LIBRARIES:
        raise TideError(f"{library[:40]!r} is not a library that is known here; use one of {', '.join(LIBRARIES)}")
    return library


def _timestep(at: At) -> float | None:
    if at is None:
        return None
    timestep = float(Position.of(at).timesteps(torch.device("cpu"))[0])
    if not 0 <= timestep <= 1000:
        raise TideError(f"timestep {timestep:g} is not the scheduler's; give one from 0 to 1000")
    return timestep


def _is_conditioned(model: TIDE) -> bool:
    return model.modulation is not None and model.modulation.config.conditioned


def check_free(folder: Path, weights: str) -> None:
    """Raises :class:`~tide.errors.TideError` for a folder that holds an SAE whose weights have another file name than
    ``weights``: files of its configuration could have the names of those that are to be written."""
    for other in (*(each.WEIGHTS for each in LIBRARIES.values()), OWN_WEIGHTS):
        if other != weights and (folder / other).exists():
            raise TideError(f"{folder} holds {other} already; write to another folder")
