"""Option groups that commands share, and the values they parse. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tide.errors import TideError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

#: The largest count: PyTorch's and NumPy's own limits are far above, and no count of anything here comes near.
MOST = 2**31 - 1
#: Seeds are multiplied and added to, and stay below 2^63.
MOST_SEED = 2**32 - 1
MOST_PIXELS = 2**16
#: What PyTorch's numbers of 32 bits hold.
MOST_NUMBER = 3e38
#: Bytes of a name that becomes part of a file's name.
MOST_BYTES = 100


# -- the command line as a whole ------------------------------------------------------------------------------------


def check_text(argv: Sequence[str]) -> None:
    """Raises :class:`~tide.errors.TideError` for an argument that no file and no message can name."""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise TideError(f"argument {argument!a} is not UTF-8 text; write or rename it in UTF-8") from None
        if "\0" in argument:
            raise TideError(f"argument {argument!a} holds a NUL character; leave it out")


def check_names(given: Mapping[str, Any], flags: Mapping[str, str]) -> None:
    """Raises :class:`~tide.errors.TideError` for an option that is given as empty text, which stands for the current
    folder where it names one. Prompts may be empty. ``flags``: how options are written."""
    for name, value in given.items():
        if name not in ("prompt", "towards") and "" in (value if isinstance(value, list) else [value]):
            raise TideError(f"{flags[name]} is empty; give it a value or leave it off")


# -- values ---------------------------------------------------------------------------------------------------------


def size(text: str) -> tuple[int, int]:
    """``1024`` or ``768x1024`` (height x width), in pixels."""
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text)
    sides = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not all(1 <= side <= MOST_PIXELS for side in sides):
        raise argparse.ArgumentTypeError(
            f"{_shown(text)} is no size; give pixels, such as 1024 or 768x1024, at most {MOST_PIXELS}"
        )
    return sides


def n_bytes(text: str) -> int:
    """``50GB``, ``1.5 TB``, ``800MB`` (powers of ten)."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no amount of disk; write it as 800MB or 50GB")
    return int(Decimal(found[1]) * _UNITS[found[2].upper()])


def fraction(text: str) -> float:
    """``1/16`` or ``0.0625``; any finite number."""
    over, slash, under = text.partition("/")
    try:
        return finite(str(finite(over) / finite(under))) if slash else finite(text)
    except (argparse.ArgumentTypeError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no fraction; write it as 1/16 or 0.0625") from None


def block(text: str) -> int | str:
    """A block's number, negative from the end, or ``penultimate``."""
    if text == "penultimate":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no block; give a number or 'penultimate'") from None


def positive(text: str) -> int:
    return _whole(text, "count", 1, MOST)


def seed(text: str) -> int:
    return _whole(text, "seed", 0, MOST_SEED)


def seeds(text: str) -> int:
    return _whole(text, "number of seeds", 1, 1000)


def prompts(text: str) -> int:
    """A million scenes are the most that :func:`tide.scenes.scenes` makes; known before hours of measuring."""
    return _whole(text, "number of prompts", 1, 10**6)


def threads(text: str) -> int:
    """More threads than a few a core only cost, and PyTorch crashes on very many."""
    return _whole(text, "number of threads", 1, max(64, 4 * (os.cpu_count() or 1)))


def _whole(text: str, what: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no {what}; give a whole number, {least} to {most}")
    return value


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MOST_NUMBER:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no number; give a finite one, at most {MOST_NUMBER:g}")
    return value


def features(text: str) -> tuple[int, ...]:
    """``12,40``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no list of latents; write it as 12,40") from None


def scaling(text: str) -> tuple[tuple[int, ...], float]:
    """``12,40=3.0``: latents and their factor."""
    names, _, factor = text.partition("=")
    try:
        return features(names), finite(factor)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no scaling; write it as 12,40=3.0") from None


def replacement(text: str) -> tuple[str, str]:
    """``red=blue``: a word and what takes its place."""
    source, _, target = (part.strip() for part in text.partition("="))
    if not source or not target:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no change of a word; write it as red=blue")
    return source, target


def words(text: str) -> tuple[str, ...]:
    """``house,tree``: each names a picture's file as well."""
    found = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError("no concept is named; write them as house,tree")
    for word in found:
        if not word.isprintable() or set("/\\") & set(word) or len(word.encode()) > MOST_BYTES:
            raise argparse.ArgumentTypeError(
                f"{_shown(word)} cannot name a picture; give words without slashes, of at most {MOST_BYTES} bytes"
            )
    return found


def _shown(text: str) -> str:
    """The text as a message quotes it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


# -- groups of options ----------------------------------------------------------------------------------------------


def add_pipeline(parser: argparse.ArgumentParser, *, required: bool = True, default: str | None = None) -> None:
    group = parser.add_argument_group("pipeline")
    group.add_argument(
        "--pipeline",
        required=required,
        metavar="P",
        help="a diffusers id or folder, or 'scenes' for the bundled one" + (f"; default {default}" if default else ""),
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 ...; default: the GPU if there is one")
    group.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: bf16 on a GPU, fp32 on the CPU")
    group.add_argument("--size", type=size, metavar="PIXELS", help="1024 or 768x1024; default: the pipeline's own")
    group.add_argument(
        "--offload", action="store_true", help="keep on the GPU only the model that runs (diffusers' model offload)"
    )
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the pipeline; read it first"
    )


def add_data(parser: argparse.ArgumentParser, *, required: bool = False, images: str) -> None:
    """``images``: what ``--images`` counts, for its help."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        required=required,
        metavar="D",
        help="a folder of images with captions (metadata.jsonl or .txt beside each), a name for the `datasets` "
        "library, or 'scenes' for rendered scenes",
    )
    group.add_argument("--images", type=positive, metavar="N", help=images)
    group.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, with a warning")
    group.add_argument("--split", default="train", help="split of a named data set (default train)")
    group.add_argument("--image-column", default="image", help="of a named data set (default image)")
    group.add_argument("--caption-column", default="text", help="of a named data set (default text)")


def add_sae(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("autoencoder")
    group.add_argument("--sae", required=True, metavar="CHECKPOINT", help="the folder that `tide train` wrote")
    group.add_argument("--block", type=block, help="fail unless the checkpoint is of this block")
    group.add_argument("--backend", default="auto", help="auto, reference, triton or native (default auto)")
