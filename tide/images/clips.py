"""Clips: the frames of animated pictures (GIF, WebP, by Pillow) and of videos (MP4 and others, by PyAV).

Of a clip that is longer than what is asked for, the frames in its middle count, as the centre of a picture does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image

from tide.errors import TideError
from tide.images.decode import MAX_PIXELS, check_file
from tide.images.modes import to_rgb
from tide.messages import one_line

#: Files that are read as clips.
CLIP_SUFFIXES = (".gif", ".webp", ".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
#: Formats of Pillow that hold several frames.
_ANIMATED = ("GIF", "WEBP")
#: Frames at most that are counted in one clip.
MAX_FRAMES = 100_000


def open_clip(source: Path | bytes, name: str, n_frames: int) -> list[Image.Image]:
    """The ``n_frames`` in the middle of a clip, upright and in mode RGB.

    Args:
        source: a file's path, or its bytes.
        name: what messages call it.
        n_frames: how many frames are needed.

    Raises :class:`~tide.errors.TideError` for a file that is no clip, is damaged, has too few frames or no frame, and
    for a video where PyAV, or PyAV's codec, is missing.
    """
    if isinstance(source, Path):
        check_file(source, name)
    start = source[:16] if isinstance(source, bytes) else _start(source)
    animated = start.startswith(b"GIF8") or (start.startswith(b"RIFF") and start[8:12] == b"WEBP")
    try:
        return (_of_pillow if animated else _of_av)(source, name, n_frames)
    except TideError:
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise TideError(
            f"{name} is not a readable clip ({one_line(error)}); give a whole one ({', '.join(CLIP_SUFFIXES)})"
        ) from None


def clip_of(frames: Sequence[Any], name: str, n_frames: int) -> list[Image.Image]:
    """The middle of a clip that is given as its pictures."""
    first = _first_of(len(frames), name, n_frames)
    return [to_rgb(frame, name=name) for frame in frames[first : first + n_frames]]


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _first_of(n: int, name: str, n_frames: int) -> int:
    """The number of the first of the frames in the middle."""
    if n < 1:
        raise TideError(f"{name} holds no frames; give a clip with some, or leave it out")
    if n < n_frames:
        frames = "frame" if n == 1 else "frames"
        raise TideError(f"{name} has {n} {frames} and {n_frames} are needed; give a longer clip, or a size of fewer")
    return (n - n_frames) // 2


def _of_pillow(source: Path | bytes, name: str, n_frames: int) -> list[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that do not matter here
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_ANIMATED) as image:
            if image.width * image.height > MAX_PIXELS:
                raise TideError(f"{name} is {image.width} x {image.height} pixels; make it smaller")
            order = _at_an_even_rate(image, n_frames)
            first = _first_of(len(order), name, n_frames)
            wanted = order[first : first + n_frames]
            decoded = {}
            for number in sorted(set(wanted)):
                image.seek(number)
                decoded[number] = to_rgb(image.copy(), name=name)
            return [decoded[number] for number in wanted]


def _at_an_even_rate(image: Image.Image, n_frames: int) -> list[int]:
    """The number of the picture that each frame shows: writers store pictures that do not change once, and longer. One
    that lasts is a clip that stands still, of as many frames as are asked for."""
    shown = []
    for number in range(min(getattr(image, "n_frames", 1), MAX_FRAMES)):
        image.seek(number)
        image.load()  # WebP tells the duration of a frame with its pixels
        shown.append(max(0, image.info.get("duration") or 0))
    if len(shown) == 1 and shown[0]:
        return [0] * n_frames
    shortest = min((each for each in shown if each), default=1)
    repeated = [[number] * max(1, round(each / shortest)) for number, each in enumerate(shown)]
    return list(chain.from_iterable(repeated))[:MAX_FRAMES]


def _of_av(source: Path | bytes, name: str, n_frames: int) -> list[Image.Image]:
    try:
        import av  # an extra, and slow to import
    except ImportError:
        raise TideError(
            f"{name} is a video, which PyAV reads; pip install 'tide-sae[video]', or convert it to .webp or .gif"
        ) from None

    def opened() -> Any:
        return av.open(BytesIO(source) if isinstance(source, bytes) else str(source))

    with opened() as container:
        if not container.streams.video:
            raise TideError(f"{name} holds no frames; give a clip with some, or leave it out")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise TideError(
                f"{name} is coded in a way that this PyAV does not decode; convert it, such as to H.264 in .mp4"
            )
        n = sum(1 for _ in islice(container.decode(stream), MAX_FRAMES))
    first = _first_of(n, name, n_frames)
    with opened() as container:
        frames = islice(container.decode(container.streams.video[0]), first, first + n_frames)
        return [to_rgb(frame.to_image(), name=name) for frame in frames]
