"""Clips of a bright square that moves, or stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tide.clip import clip_writer


def square_clip(number: int, frames: int, size: tuple[int, int], *, moves: bool) -> list[Image.Image]:
    """Frames of ``size`` (height, width) pixels, in which a square of a quarter of the width moves down, or stays."""
    height, width = size
    side, colour = width // 4, np.random.default_rng(number).integers(128, 256, 3)
    found = []
    for frame in range(frames):
        # The background flickers: animated files hold frames that are nearly alike but once.
        pixels = np.full((height, width, 3), 30 + 40 * (frame % 2), dtype=np.uint8)
        top = round((height - side) * frame / max(1, frames - 1)) if moves else height // 2
        left = number * 5 % (width - side)
        pixels[top : top + side, left : left + side] = colour
        found.append(Image.fromarray(pixels))
    return found


def clip_folder(folder: Path, n: int, frames: int, size: tuple[int, int]) -> Path:
    """``n`` clips with captions, "... moves" of every second one and "... rests" of the others."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        moves = number % 2 == 0
        clip_writer(square_clip(number, frames, size, moves=moves))(folder / f"{number}.webp")
        (folder / f"{number}.txt").write_text(f"a square {'moves' if moves else 'rests'}")
    return folder
