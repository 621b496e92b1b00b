"""The manifest of an activation store, and checks of the shards that it lists."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor

from tide.errors import TideError
from tide.files import file_digest, open_tensors, parse_json
from tide.files.remote import Place, text_at
from tide.files.schema import check_schema
from tide.files.tensors import is_finite
from tide.images.identity import Sample, digest_of

FORMAT: Literal["tide-activations/1"] = "tide-activations/1"
MANIFEST = "manifest.json"
#: The tensor of a shard that lists its samples as JSON. It is not in the file's metadata, because safetensors writes
#: several metadata entries in random order, and equal shards must be equal bits.
SAMPLES = "samples"
SHARD = "shard-{:05d}.safetensors"
_SHARD_NAME = re.compile(r"shard-([0-9]{5,9})\.safetensors")
_REMEDY = "run `tide collect --resume`, which collects it again, or copy the whole folder again"

#: dtypes of activations -> their names in safetensors.
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
#: The tensors of a shard that must be finite, as far as it has them.
_FLOATS = ("x", "target", "timestep", "conditioning")


class Shard(TypedDict):
    """The shard holds ``samples`` places of the data from ``first_sample`` on; ``data`` is the digest of what was read
    there. Stores of earlier versions lack the fields that are not required."""

    file: str
    rows: int
    groups: int
    bytes: int
    sha256: NotRequired[str]
    first_sample: NotRequired[int]
    samples: NotRequired[int]
    data: NotRequired[str]


class Manifest(TypedDict):
    """The fields that are not required appear with the first shard. ``target``: whether shards also hold what a
    transcoder makes of x."""

    format: Literal["tide-activations/1"]
    info: dict[str, Any]
    rows: int
    next_sample: int
    complete: bool
    shards: list[Shard]
    d_model: NotRequired[int]
    dtype: NotRequired[str]
    paired: NotRequired[bool]
    d_conditioning: NotRequired[int]
    target: NotRequired[bool]


def new_manifest(info: dict[str, Any]) -> Manifest:
    return {"format": FORMAT, "info": info, "rows": 0, "next_sample": 0, "complete": False, "shards": []}


def read_manifest(folder: Place) -> Manifest:
    """The checked manifest of a store; raises :class:`~tide.errors.TideError` if there is none, or a damaged one."""
    if (manifest := manifest_at(folder)) is None:
        raise TideError(f"{folder} holds no {MANIFEST}; give the folder of an activation store")
    return manifest


def manifest_at(folder: Place) -> Manifest | None:
    """As :func:`read_manifest`; None if there is none."""
    path = folder / MANIFEST
    if (text := text_at(path)) is None:
        return None
    found = parse_json(text, str(path))
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise TideError(f"{path} is not of the format {FORMAT}; give the folder of an activation store")
    check_schema(found, Manifest, str(path))
    manifest: Manifest = found  # type: ignore[assignment]
    if fault := _manifest_fault(manifest):
        raise TideError(f"{path}: {fault}; the file is damaged, copy the whole folder again or collect again")
    return manifest


def _manifest_fault(manifest: Manifest) -> str | None:
    shards = manifest["shards"]
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard["file"]):
            return f"{shard['file']!r} is not the name of a shard"
        if min(shard["rows"], shard["groups"], shard["bytes"], shard.get("samples", 1)) < 1:
            return f"{shard['file']} holds nothing"
        if shard.get("first_sample", 0) < 0:
            return f"{shard['file']} starts at sample {shard.get('first_sample')}"
    digests = [shard["sha256"] for shard in shards if "sha256" in shard]
    if len({shard["file"] for shard in shards}) < len(shards) or len(set(digests)) < len(digests):
        return "a shard is listed twice"
    if manifest["rows"] != sum(shard["rows"] for shard in shards):
        return f"{manifest['rows']} rows are not the sum of the shards' rows"
    ends = [
        shard["first_sample"] + shard["samples"] for shard in shards if "first_sample" in shard and "samples" in shard
    ]
    known = len(ends) == len(shards)
    if manifest["next_sample"] < 0 or (known and manifest["next_sample"] != max(ends, default=0)):
        return f"the next sample is {manifest['next_sample']}, which is not where the shards end"
    return _kind_fault(manifest) if shards else None


def shard_number(name: str) -> int:
    """The number in a shard's name."""
    found = _SHARD_NAME.fullmatch(name)
    assert found is not None  # every name in a manifest that was read was checked
    return int(found[1])


def _kind_fault(manifest: Manifest) -> str | None:
    if missing := [name for name in ("d_model", "dtype", "paired", "d_conditioning") if name not in manifest]:
        return f"{missing[0]} is missing"
    if manifest["dtype"] not in _DTYPES:
        return f"dtype {manifest['dtype']!r} is unknown"
    if manifest["d_model"] < 1 or manifest["d_conditioning"] < 0:
        return "activations have a width of 1 at least"
    if manifest["paired"] and any(shard["rows"] % 2 for shard in manifest["shards"]):
        return "activations are paired and a shard holds an odd number of rows"
    return None


def open_shard(path: Path, manifest: Manifest, shard: Shard) -> Any:
    """The memory-mapped file ``path`` of a shard, after all checks that need only its header and two numbers: it is not
    a link, has the size that the manifest says, holds tensors of the right shapes and dtypes, and has the right first
    and last samples.

    Raises :class:`~tide.errors.TideError`.
    """
    if path.is_symlink():
        raise TideError(f"{path} is a link, which may lead out of the store; put the shard itself there")
    try:
        file = open_tensors(path, "the store")
    except TideError as error:
        raise TideError(f"{str(error).rpartition('; ')[0]}; {_REMEDY}") from None
    if (file.metadata() or {}).get("format") != FORMAT:
        raise TideError(f"{path} is a safetensors file of another kind; {_REMEDY}")
    if fault := _size_fault(path, shard) or _header_fault(file, manifest, shard) or _place_fault(file, shard):
        raise TideError(f"{path} is not the shard that the manifest lists ({fault}); {_REMEDY}")
    return file


def _size_fault(path: Path, shard: Shard) -> str | None:
    size = path.stat().st_size
    return None if size == shard["bytes"] else f"{size} bytes, not {shard['bytes']}"


def _header_fault(file: Any, manifest: Manifest, shard: Shard) -> str | None:
    rows, groups = shard["rows"], shard["groups"]
    wanted: dict[str, tuple[list[int], str]] = {
        "x": ([rows, manifest["d_model"]], _DTYPES[manifest["dtype"]]),
        "sample": ([rows], "I64"),
        "token": ([rows], "I32"),
        "timestep": ([groups], "F32"),
        "group": ([rows], "I32"),
    }
    if manifest.get("target"):
        wanted["target"] = wanted["x"]
    if manifest["d_conditioning"]:
        wanted["conditioning"] = ([groups, manifest["d_conditioning"]], "F32")
    if different := wanted.keys() ^ (set(file.keys()) - {SAMPLES}):
        return f"tensor {sorted(different)[0]} is {'missing' if different & wanted.keys() else 'foreign'}"
    if SAMPLES in file.keys():
        wanted[SAMPLES] = (file.get_slice(SAMPLES).get_shape()[:1], "U8")
    for name, (shape, dtype) in wanted.items():
        found = file.get_slice(name)
        if found.get_shape() != shape or found.get_dtype() != dtype:
            return f"{name} is {found.get_dtype()} {found.get_shape()}, not {dtype} {shape}"
    return None


def _place_fault(file: Any, shard: Shard) -> str | None:
    """Also detects swapped and duplicated shards."""
    samples = file.get_slice("sample")
    return _sample_fault(torch.cat([samples[:1], samples[-1:]]), shard)


def _sample_fault(sample: Tensor, shard: Shard) -> str | None:
    if "first_sample" not in shard or "samples" not in shard:
        return None
    first, end = shard["first_sample"], shard["first_sample"] + shard["samples"]
    place = places(sample)
    if int(place.min()) < first or int(place.max()) >= end:
        return f"samples {int(place.min())}..{int(place.max())}, not {first}..{end - 1}"
    return None


def verify_shard(path: Path, manifest: Manifest, shard: Shard) -> Any:
    """As :func:`open_shard`, after reading the whole file: its SHA-256 if the manifest has it, and every value."""
    file = open_shard(path, manifest, shard)
    if "sha256" in shard and file_digest(path) != shard["sha256"]:
        raise TideError(f"{path} is not the shard that the manifest lists (another SHA-256); {_REMEDY}")
    if fault := _content_fault(file, manifest, shard):
        raise TideError(f"{path} is not the shard that the manifest lists ({fault}); {_REMEDY}")
    return file


def _content_fault(file: Any, manifest: Manifest, shard: Shard) -> str | None:
    group, token = file.get_tensor("group"), file.get_tensor("token")
    if int(group.min()) < 0 or int(group.max()) >= shard["groups"]:
        return f"groups {int(group.min())}..{int(group.max())}, not 0..{shard['groups'] - 1}"
    if int(token.min()) < 0:
        return f"token {int(token.min())}"
    for name in _FLOATS:
        if name in file.keys() and not is_finite(file.get_tensor(name)):
            return f"{name} holds NaN or inf"
    return _sample_fault(file.get_tensor("sample"), shard)


def places(sample: Tensor) -> Tensor:
    """The places in the data of rows' samples: unconditional rows of sample i are numbered -1 - i."""
    return torch.where(sample < 0, -1 - sample, sample)


def sample_range(sample: Tensor) -> dict[str, int]:
    """The places in the data of a shard's rows, as its entry says them."""
    place = places(sample)
    first = int(place.min())
    return {"first_sample": first, "samples": int(place.max()) + 1 - first}


def encoded(samples: Sequence[Sample]) -> Tensor:
    """What a shard records of its samples: JSON, as uint8."""
    return torch.frombuffer(bytearray(json.dumps([list(sample) for sample in samples]).encode()), dtype=torch.uint8)


def samples_of(file: Any) -> list[Sample] | None:
    """What an open shard records of its samples, or None."""
    return _decoded(bytes(file.get_tensor(SAMPLES).numpy())) if SAMPLES in file.keys() else None


def record_of(file: str) -> str:
    """The file that lists the samples of the shard ``file`` once more. If the shard is damaged, it still tells which
    images in which order it is collected from again."""
    folder, slash, name = file.rpartition("/")
    return f"{folder}{slash}samples-{shard_number(name):05d}.json"


def recorded_beside(folder: Place, shard: Shard) -> list[Sample] | None:
    """The samples of a shard that is damaged or elsewhere, or None: stores of earlier versions do not record them."""
    try:
        text = text_at(folder / record_of(shard["file"]))
    except TideError:
        return None
    samples = None if text is None else _decoded(text.encode())
    return samples if samples is not None and digest_of(samples) == shard.get("data") else None


def _decoded(content: bytes) -> list[Sample] | None:
    try:
        return [Sample(*map(str, entry)) for entry in json.loads(content)]
    except (ValueError, TypeError, RecursionError):
        return None
