"""Clips: the frames of animated pictures (GIF, WebP, by Pillow) and of videos (MP4 and others, by PyAV).

Of a clip that is longer than what is asked for, the frames in its middle count, as the centre of a picture does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from PIL import Image

from tide.errors import TideError
from tide.images.decode import MAX_PIXELS, MAX_SIDE, check_bytes, check_file, reason_of
from tide.images.modes import Background, to_rgb

#: Files that are read as clips.
CLIP_SUFFIXES = (".gif", ".webp", ".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
#: Formats of Pillow that hold several frames.
_ANIMATED = ("GIF", "WEBP")
#: Frames of one clip that are looked at, at most.
MAX_FRAMES = 100_000
#: Pixels of the frames that are kept, and of all that are decoded to find them, at most.
MAX_KEPT, MAX_DECODED = 4 * MAX_PIXELS, 2 * 10**10
#: A picture that lasts so many times as long as the shortest one stands for several frames.
_REPEATED = 1.75
#: What a video may be: libavformat would also open lists of other files, and streams of networks.
_VIDEOS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    "protocol_whitelist": "file,pipe",
}


def open_clip(source: Path | bytes, name: str, n_frames: int, *, background: Background = "white") -> list[Image.Image]:
    """The ``n_frames`` in the middle of a clip, upright and in mode RGB.

    Args:
        source: a file's path, or its bytes.
        name: what messages call it.
        n_frames: how many frames are needed.
        background: what shows where frames are transparent.

    Raises :class:`~tide.errors.TideError` for a file that is no clip, is damaged, is larger than
    :data:`~tide.images.decode.MAX_BYTES`, :data:`MAX_KEPT` or :data:`MAX_DECODED`, has too few frames or no frame, and
    for a video where PyAV, or PyAV's codec, is missing.
    """
    if isinstance(source, Path):
        check_file(source, name)
    else:
        check_bytes(len(source), name)
    start = source[:16] if isinstance(source, bytes) else _start(source)
    moves = start.startswith(b"GIF8") or (start.startswith(b"RIFF") and start[8:12] == b"WEBP")
    try:
        return _of_pillow(source, name, n_frames, background) if moves else _of_av(source, name, n_frames)
    except TideError:
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise TideError(
            f"{name} is not a readable clip ({reason_of(error)}); give a whole one ({', '.join(CLIP_SUFFIXES)})"
        ) from None


def is_animated(path: Path) -> bool:
    """Whether a picture's file holds several frames, as far as Pillow can tell."""
    try:
        with Image.open(path, formats=_ANIMATED) as image:
            return getattr(image, "n_frames", 1) > 1
    except OSError:
        return False


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


def _check_size(width: int, height: int, n_frames: int, name: str) -> None:
    if max(width, height) > MAX_SIDE or width * height * n_frames > MAX_KEPT:
        raise TideError(
            f"{name} is {width} x {height} pixels, "
            f"of which {n_frames} frames are more than what is read; make it smaller"
        )


def _most_frames(width: int, height: int) -> int:
    """How many frames of this size are decoded at most."""
    return max(1, min(MAX_FRAMES, MAX_DECODED // max(1, width * height)))


def _of_pillow(source: Path | bytes, name: str, n_frames: int, background: Background) -> list[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that do not matter here
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_ANIMATED) as image:
            _check_size(image.width, image.height, n_frames, name)
            order = _at_an_even_rate(image, n_frames)
            first = _first_of(len(order), name, n_frames)
            wanted = order[first : first + n_frames]
            decoded = {}
            for number in sorted(set(wanted)):
                image.seek(number)
                decoded[number] = to_rgb(image.copy(), background, name)
            return [decoded[number] for number in wanted]


def _at_an_even_rate(image: Image.Image, n_frames: int) -> list[int]:
    """The number of the picture that each frame shows: writers store pictures that do not change once, and longer. One
    that lasts is a clip that stands still, of as many frames as are asked for."""
    shown = []
    for number in range(min(getattr(image, "n_frames", 1), _most_frames(image.width, image.height))):
        image.seek(number)
        image.load()  # WebP tells the duration of a frame with its pixels
        shown.append(max(0, image.info.get("duration") or 0))
    if len(shown) == 1 and shown[0]:
        return [0] * n_frames
    shortest = min((each for each in shown if each), default=1)
    times = (round(each / shortest) if each >= _REPEATED * shortest else 1 for each in shown)
    frames = chain.from_iterable(repeat(number, n) for number, n in enumerate(times))
    return list(islice(frames, MAX_FRAMES))


def _of_av(source: Path | bytes, name: str, n_frames: int) -> list[Image.Image]:
    try:
        import av  # an extra, and slow to import
    except ImportError:
        raise TideError(
            f"{name} is a video, which PyAV reads; pip install 'tide-sae[video]', or convert it to .webp or .gif"
        ) from None

    def opened() -> Any:
        return av.open(BytesIO(source) if isinstance(source, bytes) else str(source), options=_VIDEOS)

    with opened() as container:
        if not container.streams.video:
            raise TideError(f"{name} holds no frames; give a clip with some, or leave it out")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise TideError(
                f"{name} is coded in a way that this PyAV does not decode; convert it, such as to H.264 in .mp4"
            )
        _check_size(stream.width, stream.height, n_frames, name)
        n = sum(1 for _ in islice(container.decode(stream), _most_frames(stream.width, stream.height)))
    first = _first_of(n, name, n_frames)
    with opened() as container:
        frames = islice(container.decode(container.streams.video[0]), first, first + n_frames)
        return [_upright(frame, name, n_frames) for frame in frames]


def _upright(frame: Any, name: str, n_frames: int) -> Image.Image:
    """A frame of PyAV, turned as its display matrix says: counter-clockwise, in degrees."""
    _check_size(frame.width, frame.height, n_frames, name)  # which may change within a video
    picture = to_rgb(frame.to_image(), name=name)
    return picture.rotate(frame.rotation, expand=True) if getattr(frame, "rotation", 0) else picture
