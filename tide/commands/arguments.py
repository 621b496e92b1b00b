"""Option groups that commands share, and the values they parse. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import re
from fractions import Fraction

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size(text: str) -> tuple[int, int]:
    """``1024`` or ``768x1024`` (height x width), in pixels."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if found is None or not int(found[1]) or not int(found[2] or 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give pixels, such as 1024 or 768x1024")
    return int(found[1]), int(found[2] or found[1])


def n_bytes(text: str) -> int:
    """``50GB``, ``1.5 TB``, ``800MB`` (powers of ten)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of disk; write it as 800MB or 50GB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def fraction(text: str) -> float:
    """``1/16`` or ``0.0625``."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction; write it as 1/16 or 0.0625") from None


def block(text: str) -> int | str:
    """A block's number, negative from the end, or ``penultimate``."""
    if text == "penultimate":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no block; give a number or 'penultimate'") from None


def positive(text: str) -> int:
    return _whole(text, "count", 1)


def seed(text: str) -> int:
    return _whole(text, "seed", 0)


def _whole(text: str, what: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}; give a whole number, at least {least}")
    return value


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give a finite one")
    return value


def features(text: str) -> tuple[int, ...]:
    """``12,40``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of latents; write it as 12,40") from None


def scaling(text: str) -> tuple[tuple[int, ...], float]:
    """``12,40=3.0``: latents and their factor."""
    names, _, factor = text.partition("=")
    try:
        return features(names), finite(factor)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no scaling; write it as 12,40=3.0") from None


def replacement(text: str) -> tuple[str, str]:
    """``red=blue``: a word and what takes its place."""
    source, _, target = (part.strip() for part in text.partition("="))
    if not source or not target:
        raise argparse.ArgumentTypeError(f"{text!r} is no change of a word; write it as red=blue")
    return source, target


def words(text: str) -> tuple[str, ...]:
    """``house,tree``."""
    found = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError("no concept is named; write them as house,tree")
    return found


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
