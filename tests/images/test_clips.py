"""Clips: the frames in the middle of what moves, and one line for what is no clip."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tide.clip import clip_writer
from tide.errors import TideError, TideWarning
from tide.images import open_data
from tide.images.clips import MAX_FRAMES, open_clip

#: Frames of one grey each, far enough apart to survive every codec.
GREYS = (0, 40, 80, 120, 160, 200, 240)


def frames(n: int = 7, size: tuple[int, int] = (32, 16)) -> list[Image.Image]:
    return [Image.new("RGB", size, (grey,) * 3) for grey in GREYS[:n]]


def written(path: Path, n: int = 7, size: tuple[int, int] = (32, 16)) -> Path:
    clip_writer(frames(n, size), path.suffix)(path)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4", ".webm"])
@pytest.mark.parametrize("n", [7, 5, 4, 1])
def test_the_frames_in_the_middle(tmp_path, suffix, n):
    """As the centre of a picture is what a square crop keeps; of bytes as of a file."""
    pytest.importorskip("av", reason="PyAV reads videos")
    file = written(tmp_path / f"a{suffix}")
    first = (7 - n) // 2
    for source in (file, file.read_bytes()):
        found = [int(np.asarray(frame).mean()) for frame in open_clip(source, "a", n)]
        # Codecs of videos round colours.
        assert found == pytest.approx(GREYS[first : first + n], abs=6)


def test_a_video_of_odd_sides_is_written_and_read(tmp_path):
    """Codecs halve the colours' resolution: the last row and column are repeated."""
    pytest.importorskip("av", reason="PyAV reads videos")
    (frame,) = open_clip(written(tmp_path / "a.mp4", size=(31, 15)), "a", 1)
    assert frame.size == (32, 16)


def test_frames_that_do_not_change_count(tmp_path):
    """Writers store them once, with a longer time."""
    still = [*frames(2), frames(2)[1], frames(2)[1], frames(3)[2]]
    clip_writer(still, ".gif")(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as stored:
        assert stored.n_frames == 3
    found = [int(np.asarray(frame).mean()) for frame in open_clip(tmp_path / "a.gif", "a", 5)]
    assert found == [0, 40, 40, 40, 80]


def test_a_clip_that_stands_still(tmp_path):
    """Stored as one picture that lasts; a picture without a time is none."""
    clip_writer([frames(1)[0]] * 6, ".gif")(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as stored:
        assert stored.n_frames == 1
    assert len(open_clip(tmp_path / "a.gif", "a", 6)) == 6
    frames(1)[0].save(tmp_path / "b.gif")
    with pytest.raises(TideError, match="has 1 frame and 6 are needed"):
        open_clip(tmp_path / "b.gif", "b", 6)


def test_too_few_frames(tmp_path):
    written(tmp_path / "a.gif", 3)
    with pytest.raises(TideError, match=r"^a has 3 frames and 9 are needed; give a longer clip, or a size of fewer$"):
        open_clip(tmp_path / "a.gif", "a", 9)
    Image.new("RGB", (4, 4)).save(tmp_path / "still.webp")
    with pytest.raises(TideError, match=r"^still has 1 frame and 2 are needed"):
        open_clip(tmp_path / "still.webp", "still", 2)


def test_files_that_are_no_clips(tmp_path):
    for name, content in (("cut.gif", b"GIF89a\x01"), ("cut.mp4", b"\x00\x00\x00\x18ftypmp42"), ("text.mp4", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TideError, match=rf"^{name} is not a readable clip \(.*; give a whole one") as error:
            open_clip(tmp_path / name, name, 2)
        assert "\n" not in str(error.value)
    with pytest.raises(TideError, match="does not exist"):
        open_clip(tmp_path / "none.gif", "none.gif", 2)


def test_a_video_with_sound_alone_holds_no_frames(tmp_path):
    av = pytest.importorskip("av", reason="PyAV reads videos")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(TideError, match=r"^a\.mp4 holds no frames; give a clip with some, or leave it out$"):
        open_clip(tmp_path / "a.mp4", "a.mp4", 2)


def test_without_pyav_videos_are_refused_and_pictures_that_move_are_read(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="PyAV writes the video")
    video, moving = written(tmp_path / "a.mp4"), written(tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(open_clip(moving, "a", 4)) == 4
    with pytest.raises(
        TideError, match=r"^a is a video, which PyAV reads; pip install 'tide-sae\[video\]', or convert"
    ):
        open_clip(video, "a", 4)
    with pytest.raises(
        TideError, match=r"^\.mp4 is written by PyAV; pip install 'tide-sae\[video\]', or write \.webp$"
    ):
        clip_writer(frames(), ".mp4")
    with pytest.raises(TideError, match=r"^\.avi is no clip; write \.webp, \.gif, \.mp4, \.webm$"):
        clip_writer(frames(), ".avi")


def test_times_that_hardly_differ_are_one_rate(tmp_path):
    """GIF counts hundredths of a second: 40 frames a second are written as times of 20 and 30 ms by turns."""
    first, *others = frames(6)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=[20, 30] * 3)
    found = [int(np.asarray(frame).mean()) for frame in open_clip(tmp_path / "a.gif", "a", 6)]
    assert found == list(GREYS[:6])


@pytest.mark.parametrize("longest", [200, 16_000_000])
def test_a_frame_that_lasts_for_hours_is_no_list_of_all_its_repeats(tmp_path, longest):
    """One of 1 ms beside it would make it stand for millions of frames; those counted are bounded."""
    first, *others = frames(2)
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, duration=[1, longest], lossless=True)
    found = [int(np.asarray(frame).mean()) for frame in open_clip(tmp_path / "a.webp", "a", 3)]
    assert found == [GREYS[1]] * 3
    with pytest.raises(TideError, match=rf"has {min(longest + 1, MAX_FRAMES)} frames and {MAX_FRAMES + 1} are needed"):
        open_clip(tmp_path / "a.webp", "a", MAX_FRAMES + 1)


def test_clips_of_too_many_pixels(tmp_path, monkeypatch):
    """The frames that would be kept are refused by their size, before any is decoded; of more, the first are looked
    at."""
    file = written(tmp_path / "a.gif", 7)
    monkeypatch.setattr("tide.images.clips.MAX_DECODED", 4 * 32 * 16)
    found = [int(np.asarray(frame).mean()) for frame in open_clip(file, "a", 2)]
    assert found == list(GREYS[1:3])
    monkeypatch.setattr("tide.images.clips.MAX_KEPT", 2 * 32 * 16)
    with pytest.raises(TideError, match=r"^a is 32 x 16 pixels, of which 3 frames are more than what is read; make it"):
        open_clip(file, "a", 3)


def test_lists_of_other_files_are_no_clips(tmp_path):
    """libavformat would open a file that names others, by its content, whatever it is called."""
    pytest.importorskip("av", reason="PyAV reads videos")
    written(tmp_path / "a.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    (tmp_path / "stream.mp4").write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    )
    for name in ("list.mp4", "stream.mp4"):
        with pytest.raises(TideError, match=rf"^{name} is not a readable clip"):
            open_clip(tmp_path / name, name, 1)


def test_a_folder_of_clips_with_captions(tmp_path):
    """A size with frames reads clips, one without reads pictures; either says what it leaves unread."""
    written(tmp_path / "b.gif")
    written(tmp_path / "a.webp")
    (tmp_path / "a.txt").write_text("a cube moves left")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    with pytest.warns(TideWarning, match=r"1 picture of .* is not read \(1 of \.png\); formats that are read: \.gif"):
        data = open_data(tmp_path, (5, 16, 8), seed=None)
    clips, captions = next(iter(data))
    assert clips.shape == (2, 3, 5, 16, 8)
    assert captions == ["a cube moves left", ""]
    assert clips[:, 0, :, 0, 0].mul(127.5).add(127.5).round()[1].tolist() == list(GREYS[1:6])
    with pytest.warns(TideWarning):
        pictures, _ = next(iter(open_data(tmp_path, (16, 8), seed=None)))
    assert pictures.shape == (2, 3, 16, 8)  # of the WebP its first frame


def test_a_folder_without_clips(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    with pytest.raises(TideError, match=r"holds no clips \(1 of \.png\); add some \(\.gif, \.webp, \.mp4"):
        open_data(tmp_path, (5, 16, 8))


def test_rows_of_clips(tmp_path):
    """Paths, bytes, lists of pictures, arrays ``[F, H, W, 3]``; a picture among them is refused."""
    file = written(tmp_path / "a.gif")
    array = np.stack([np.asarray(frame) for frame in frames()])
    rows = [file, file.read_bytes(), frames(), array, torch.from_numpy(array)]
    clips, _ = next(iter(open_data([(row, "a") for row in rows], (3, 16, 32), seed=None)))
    assert all(torch.equal(clip, clips[0]) for clip in clips)
    with pytest.raises(TideError, match=r"is one picture, and this pipeline draws videos; give clips"):
        next(iter(open_data([(frames()[0], "a")], (3, 16, 32), seed=None)))
    with pytest.raises(TideError, match=r"is a clip of 7 frames; use a pipeline that draws videos"):
        next(iter(open_data([(frames(), "a")], (16, 32), seed=None)))


def test_unreadable_clips_can_be_skipped(tmp_path):
    written(tmp_path / "a.gif")
    written(tmp_path / "short.gif", 2)
    with pytest.warns(TideWarning, match=r"short\.gif has 2 frames and 5 are needed.*; skipped"):
        clips, _ = next(iter(open_data(tmp_path, (5, 16, 16), on_error="skip", seed=None)))
    assert len(clips) == 1


def test_a_column_of_videos_of_datasets(tmp_path):
    """Read as bytes or paths, and not by the library's own decoder."""
    datasets = pytest.importorskip("datasets", reason="an extra")
    file = written(tmp_path / "a.gif")
    rows = datasets.Dataset.from_dict({"video": [str(file)], "text": ["a cube"]}).cast_column("video", datasets.Video())
    clips, captions = next(iter(open_data(rows, (5, 16, 32), seed=None)))
    assert clips.shape == (1, 3, 5, 16, 32)
    assert captions == ["a cube"]
