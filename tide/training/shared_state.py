"""The state of a training that several ranks share: written by all of them, read by any number.

``torch.distributed.checkpoint`` divides the tensors among the ranks, which write them at once, as safetensors. A state
has a folder ``resume/step-N`` of its own, which gets its name when all of it is there.
"""

from __future__ import annotations

import math
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, Replicate, Shard

from tide.errors import TideError
from tide.files import open_tensors, write_json
from tide.files.folders import make_folder, sync, sync_folder
from tide.world import Grid, World

#: The file beside the tensors: how far the training is, and its record.
DESCRIBED = "state.json"
_NAME = re.compile(r"step-([0-9]{1,12})")
_UNFINISHED = ".step.tmp"
_REMOVED = ".removed.tmp"


def write_shared(
    resume: Path,
    step: int,
    tensors: dict[str, Tensor],
    described: Any,
    world: World,
    by_latent: Set[str] = frozenset(),
) -> None:
    """Writes the state of ``step``; all ranks call it, each with all tensors, or in a :class:`~tide.world.Grid` with
    its rows of those ``by_latent``. The state before it is removed last.

    Raises :class:`~tide.errors.TideError` on all ranks, and leaves what there was, if one rank cannot write.
    """
    unfinished = resume / _UNFINISHED
    with world.together():
        if world.first:
            shutil.rmtree(unfinished, ignore_errors=True)
            make_folder(unfinished)
    # dcp wants no gradients, and names the rank that fails on all of them.
    placed = {name: _placed(tensor.detach(), world, name in by_latent) for name, tensor in tensors.items()}
    try:
        dcp.save(
            placed,
            storage_writer=HuggingFaceStorageWriter(str(unfinished), save_distributed=True),
        )
    except dcp.CheckpointException as error:
        if world.first:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise TideError(f"step {step} was not saved ({_failures(error)}); what {resume.parent} held is kept") from error
    with world.together():
        if world.first:
            _name(resume, step, placed, described)


def _placed(tensor: Tensor, world: World, by_latent: bool) -> Tensor:
    """The tensor as what ``torch.distributed.checkpoint`` divides: of rows of its own, a part of all rows."""
    if not by_latent or not isinstance(world, Grid):
        return tensor
    return DTensor.from_local(tensor, world.mesh(tensor.device), [Replicate(), Shard(0)], run_check=False)


def own_rows(n_rows: int, world: World) -> slice:
    """This rank's of ``n_rows`` that the ranks of a row of ``world`` divide."""
    count = n_rows // world.latents.count
    first = count * world.latents.number
    return slice(first, first + count)


def folder_of(step: int) -> str:
    """The name of a state's folder."""
    return f"step-{step}"


def _name(resume: Path, step: int, tensors: Mapping[str, Tensor], described: Any) -> None:
    """Gives the finished folder its name, and removes the states before it."""
    unfinished, final = resume / _UNFINISHED, resume / folder_of(step)
    write_json(unfinished / DESCRIBED, described)
    found: Counter[str] = Counter()
    for file in unfinished.glob("*.safetensors"):
        with open_tensors(file) as opened:
            found.update({name: math.prod(opened.get_slice(name).get_shape()) for name in opened.keys()})
    if missing := sorted(name for name, tensor in tensors.items() if found[name] < tensor.numel()):
        raise TideError(
            f"{unfinished} lacks {missing[0]}, which another rank wrote; give a folder that all ranks share"
        )
    for file in unfinished.iterdir():
        sync(file)
    sync_folder(unfinished)
    _remove(final)
    unfinished.rename(final)
    sync_folder(resume)
    remove_shared(resume, but=step)


def _failures(error: dcp.CheckpointException) -> str:
    """What failed on which rank, in a line."""
    failures = (f"rank {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
    return " ".join("; ".join(failures).split())


def remove_shared(resume: Path, but: int | None = None) -> None:
    """Removes the states in the folder, and what a killed training left of one."""
    for name in (_UNFINISHED, _REMOVED):
        shutil.rmtree(resume / name, ignore_errors=True)
    for step, folder in _found(resume).items():
        if step != but:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Removes a state, which loses its name first: a kill leaves no half of it."""
    if folder.exists():
        shutil.rmtree(folder.parent / _REMOVED, ignore_errors=True)
        folder.rename(folder.parent / _REMOVED)
        shutil.rmtree(folder.parent / _REMOVED, ignore_errors=True)


def last_shared(resume: Path) -> Path | None:
    """The folder of the latest state, if there is one."""
    found = _found(resume)
    return found[max(found)] if found else None


def _found(resume: Path) -> dict[int, Path]:
    named = ((_NAME.fullmatch(each.name), each) for each in resume.glob("step-*") if each.is_dir())
    return {int(name[1]): each for name, each in named if name}


def read_shared(folder: Path, world: World | None = None, by_latent: Set[str] = frozenset()) -> Mapping[str, Tensor]:
    """The tensors of a state, on the CPU; in a :class:`~tide.world.Grid` this rank's rows of those ``by_latent``, and
    no others are read. Raises :class:`~tide.errors.TideError` for files that are damaged."""
    world = world or World()
    for file in sorted(folder.glob("*.safetensors")):
        with open_tensors(file):
            pass
    reader = HuggingFaceStorageReader(str(folder))
    kinds: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {}
    for name, kind in kinds.items():
        if isinstance(kind, TensorStorageMetadata):
            shape = list(kind.size)
            if name in by_latent:
                rows = own_rows(shape[0], world)
                shape[0] = rows.stop - rows.start
            tensors[name] = torch.empty(shape, dtype=kind.properties.dtype)
    placed: dict[str, Any] = {name: _placed(each, world, name in by_latent) for name, each in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # every rank reads all
        dcp.load(placed, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors
