"""Clips that are drawn: a picture of the frames side by side, which knows how many they are, and files that move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypedDict

import numpy as np
from PIL import Image

from tide.errors import TideError

#: The entry of a picture's ``info`` that says how many frames it shows side by side.
FRAMES = "frames"
#: Frames that stand for a clip where it is shown as a picture.
SHOWN = 8
#: Frames a second of what is written.
RATE = 8
#: Files that move: by Pillow, and by PyAV.
ANIMATED, VIDEOS = (".webp", ".gif"), (".mp4", ".webm")


class ShownFrames(TypedDict):
    """What a page that plays clips is told of them.

    Attributes:
        total: frames of a clip.
        tokens: frames of its tokens.
        shown: the numbers of the frames that are shown.
        map: for each of these the frame of a map that covers it.
        rate: frames shown a second.
    """

    total: int
    tokens: int
    shown: list[int]
    map: list[int]
    rate: int


def filmstrip(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames of a clip, of one size, side by side. :func:`frames_of` takes it apart again."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * width, 0))
    strip.info[FRAMES] = len(frames)
    return strip


def frames_of(picture: Image.Image) -> list[Image.Image]:
    """The frames of a :func:`filmstrip`; of any other picture that alone."""
    n = picture.info.get(FRAMES, 1)
    if n == 1:
        return [picture]
    width = picture.width // n
    return [picture.crop((i * width, 0, (i + 1) * width, picture.height)) for i in range(n)]


def is_clip(picture: Image.Image) -> bool:
    """Whether a picture is a :func:`filmstrip`."""
    return FRAMES in picture.info


def shown_frames(n: int, most: int = SHOWN) -> list[int]:
    """The numbers of at most ``most`` of ``n`` frames, evenly spread with the first and the last."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]


def fewer_frames(picture: Image.Image, most: int = SHOWN) -> Image.Image:
    """A filmstrip of at most ``most`` of its frames, evenly spread with the first and the last; another picture as it
    is."""
    frames = frames_of(picture)
    if len(frames) <= most:
        return picture
    return filmstrip([frames[i] for i in shown_frames(len(frames), most)])


def clip_writer(frames: Sequence[Image.Image], suffix: str = ".webp", rate: int = RATE) -> Callable[[Path], None]:
    """What writes the frames as a file that moves, of the kind of ``suffix``, to the path that
    :func:`tide.files.replace_files` gives it.

    Args:
        frames: of one size, in mode RGB.
        suffix: one of :data:`ANIMATED` or, with PyAV, :data:`VIDEOS`.
        rate: frames a second.

    Raises :class:`~tide.errors.TideError` for another suffix, and where PyAV is missing.
    """
    if suffix in ANIMATED:
        return lambda path: write_animated(path, frames, suffix, rate)
    if suffix in VIDEOS:
        try:
            import av  # noqa: F401  # an extra, and slow to import
        except ImportError:
            raise TideError(f"{suffix} is written by PyAV; pip install 'tide-sae[video]', or write .webp") from None
        return lambda path: _coded(path, frames, suffix, rate)
    raise TideError(f"{suffix or 'a file without a suffix'} is no clip; write {', '.join((*ANIMATED, *VIDEOS))}")


def write_animated(
    file: Path | IO[bytes], frames: Sequence[Image.Image], suffix: str = ".webp", rate: int = RATE
) -> None:
    """Writes frames as one of :data:`ANIMATED`; the arguments are those of :func:`clip_writer`."""
    first, *others = frames
    kind, how = ("WEBP", {"quality": 90, "method": 4}) if suffix == ".webp" else ("GIF", {})
    first.save(file, kind, save_all=True, append_images=others, duration=round(1000 / rate), loop=0, **how)


def _coded(path: Path, frames: Sequence[Image.Image], suffix: str, rate: int) -> None:
    import av

    with av.open(str(path), "w", format=suffix[1:]) as container:
        stream = container.add_stream("h264" if suffix == ".mp4" else "vp9", rate=rate)
        # The codecs halve the colours' resolution, so sides are even.
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            odd = (0, frame.height % 2), (0, frame.width % 2), (0, 0)
            padded = np.pad(np.asarray(frame.convert("RGB")), odd, "edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode(None))
