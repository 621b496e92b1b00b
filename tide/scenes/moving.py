"""Clips of scenes in which the object moves: their captions, frames, and masks over frames, drawn by the renderer of
still scenes.

The object travels to the left or to the right, slowly or quickly, or stands still; its shadow follows. It faces where
it goes. Ground, sky, light, tints and wear are those of the scene in every frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.errors import TideError
from tide.interpretation.concepts import Annotated
from tide.scenes.annotate import activations, rendered_masks
from tide.scenes.judge import Judge
from tide.scenes.render import REGIONS, Array, Mask, Rendering, place_of, render
from tide.scenes.scene import TEMPLATES, VOCABULARY, Scene, Split, scenes

#: Frames of a clip.
N_FRAMES = 8
#: The most frames of one clip.
MOST_FRAMES = 1024
#: What captions say of the motion -> the pixels that the object travels to the right from the first frame to the last.
MOTIONS: dict[str, float] = {
    "moving left slowly": -18.0,
    "moving left quickly": -36.0,
    "moving right slowly": 18.0,
    "moving right quickly": 36.0,
    "standing still": 0.0,
}
#: Between standing still and moving slowly, half way.
_LEAST_TRAVEL = 9.0
#: Paths lie around this column, and their middles so much closer to it than still objects stand.
_CENTRE, _CLOSER = 31.0, 0.3

#: The words of captions of clips. Those of still scenes come first, so that they keep their tokens.
MOVING_VOCABULARY: tuple[str, ...] = (
    *VOCABULARY,
    *sorted({word for motion in MOTIONS for word in motion.split()} - set(VOCABULARY)),
)


@dataclass(frozen=True)
class MovingScene:
    """A scene whose object moves.

    Attributes:
        scene: what is seen.
        motion: of :data:`MOTIONS`.
    """

    scene: Scene
    motion: str

    def __post_init__(self) -> None:
        if self.motion not in MOTIONS:
            raise TideError(f"motion {self.motion!r} is unknown; use one of {', '.join(MOTIONS)}")

    @property
    def direction(self) -> str:
        """ "left", "right" or "still"."""
        return self.motion.split()[1]

    def caption(self, template: str = TEMPLATES[0], *, speed: bool = True) -> str:
        """The clip in words: the caption of its scene by a template of still scenes, with the motion behind the object.

        Without ``speed`` the caption leaves it open.
        """
        motion = self.motion if speed else " ".join(self.motion.split()[:2])
        return self.scene.caption(template.replace("{cls}", f"{{cls}} {motion}"))

    def shifts(self, n_frames: int = N_FRAMES) -> list[float]:
        """How far the object is from its place in the still scene, in pixels to the right, in each of ``n_frames``."""
        if not 1 <= n_frames <= MOST_FRAMES:
            raise TideError(f"a clip of {n_frames} frames is asked for; give from 1 to {MOST_FRAMES}")
        if self.direction == "still":
            return [0.0] * n_frames
        place = place_of(self.scene)
        middle = _CENTRE + _CLOSER * (place - _CENTRE)
        travels = np.linspace(-0.5, 0.5, n_frames) if n_frames > 1 else np.zeros(1)
        return [float(middle - place + MOTIONS[self.motion] * travel) for travel in travels]

    def renderings(self, n_frames: int = N_FRAMES) -> list[Rendering]:
        """Each frame as a still rendering."""
        return [render(self.scene, shift) for shift in self.shifts(n_frames)]


@dataclass
class Clip:
    """A rendered clip.

    Attributes:
        scene: what was rendered.
        frames: ``[F, 64, 64, 3]`` float32 in [0, 1].
        masks: concept -> bool ``[F, 64, 64]``, of those that at least one frame shows.
        regions: ``[F, 64, 64]`` int64, as of :class:`~tide.scenes.Rendering`.
    """

    scene: MovingScene
    frames: Array
    masks: dict[str, Mask]
    regions: np.ndarray


def render_clip(scene: MovingScene, n_frames: int = N_FRAMES) -> Clip:
    """The clip of ``scene`` and its masks; the same scene gives the same bits."""
    stills = scene.renderings(n_frames)
    nothing = np.zeros(stills[0].regions.shape, bool)
    concepts = dict.fromkeys(concept for still in stills for concept in still.masks)
    return Clip(
        scene,
        np.stack([still.image for still in stills]),
        {concept: np.stack([still.masks.get(concept, nothing) for still in stills]) for concept in concepts},
        np.stack([still.regions for still in stills]),
    )


def moving_scenes(split: Split, n: int, seed: int = 0) -> Iterator[MovingScene]:
    """``n`` scenes of ``split``, those of :func:`~tide.scenes.scenes` with the object turned to where it moves. Motions
    come in a random order and equally often.

    ``seed`` is that of scenes and motions, and the first scenes are the same for every ``n``.

    Raises :class:`~tide.errors.TideError` for more than :data:`~tide.scenes.scene.MOST_SCENES`.
    """
    rng = np.random.default_rng([seed, 13])
    order: list[str] = []
    for scene in scenes(split, n, seed):
        order = order or [str(motion) for motion in rng.permutation(list(MOTIONS))]
        moving = MovingScene(scene, order.pop())
        still = moving.direction == "still"
        yield moving if still else replace(moving, scene=scene.changed("orientation", moving.direction))


def moving_prompts(split: Split, n: int, seed: int = 0) -> list[tuple[MovingScene, str]]:
    """``n`` moving scenes of ``split`` with a caption each, the templates taken in a random order.

    ``seed`` is that of scenes, motions and templates.
    """
    rng = np.random.default_rng([seed, 7])
    return [(s, s.caption(TEMPLATES[rng.integers(len(TEMPLATES))])) for s in moving_scenes(split, n, seed)]


def clips_of(items: Sequence[MovingScene], n_frames: int = N_FRAMES) -> Tensor:
    """Rendered clips of ``items``, each of ``n_frames``, as ``[n, 3, F, 64, 64]`` in [-1, 1]."""
    if not items:
        raise TideError("there are no clips to render; give at least one")
    frames = np.stack([[still.image for still in item.renderings(n_frames)] for item in items])
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3) * 2 - 1


def clip_masks(items: Sequence[MovingScene], grid: tuple[int, int, int], n_frames: int = N_FRAMES) -> dict[str, Tensor]:
    """bool ``[n, tokens]`` for each concept of still scenes, from the renderer's pixel masks.

    ``grid`` has the frames, rows and columns of the tokens, which come in that order; it may have fewer frames than the
    clips, as :func:`tide.editing.token_mask` says.
    """
    if len(grid) != 3:
        raise TideError(f"the grid {tuple(grid)} has {len(grid)} numbers; give frames, rows and columns")
    return rendered_masks([render_clip(item, n_frames).masks for item in items], grid)


def annotated_clips(
    adapter: Adapter,
    items: Sequence[MovingScene],
    blocks: Sequence[int],
    timesteps: Tensor,
    *,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    batch_size: int = 8,
) -> dict[int, Annotated]:
    """:func:`~tide.scenes.annotated_scenes` of clips: activations of every token of every frame, and the masks of
    :func:`clip_masks`.

    Args:
        adapter: of the pipeline of videos.
        items: what the clips show.
        blocks: whose activations are kept.
        timesteps: at which the clips are read, ``[T]``.
        n_frames: of a clip.
        seed: of the noise.
        batch_size: clips a pass.
    """
    if not items:
        raise TideError("there are no clips to annotate; give at least one")
    parts = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    batches = ((clips_of(part, n_frames), adapter.encode_prompts([s.caption() for s in part])) for part in parts)
    x, grid = activations(adapter, batches, blocks, timesteps, seed=seed)
    masks = clip_masks(items, (grid[0], grid[1], grid[2]), n_frames)
    return {block: Annotated(timesteps.float(), x[block], dict(masks)) for block in blocks}


def travelled(judge: Judge, clips: Tensor) -> Tensor:
    """How many pixels to the right the object travels from the first frame to the last, as the judge sees it; float32
    ``[n]`` of clips ``[n, 3, F, 64, 64]`` in [-1, 1], NaN where fewer than two frames show an object.

    The slope of a line through the centres of the object's pixels, times F - 1.
    """
    n, _, n_frames = clips.shape[:3]
    seen = (judge.regions(clips.transpose(1, 2).flatten(0, 1)) == REGIONS.index("object")).float()
    columns = torch.arange(seen.shape[-1], dtype=torch.float32, device=seen.device) + 0.5
    size = seen.sum((1, 2))
    centre = ((seen.sum(1) @ columns) / size).reshape(n, n_frames)
    shown = size.reshape(n, n_frames) > 0
    weight = shown / shown.sum(1, keepdim=True)
    time = torch.arange(n_frames, dtype=torch.float32, device=seen.device).expand(n, -1)
    centre = torch.where(shown, centre, 0.0)
    offset = torch.where(shown, time - (weight * time).sum(1, keepdim=True), 0.0)
    return (offset * centre).sum(1) / (offset * offset).sum(1) * (n_frames - 1)


def directions(judge: Judge, clips: Tensor) -> list[str]:
    """Whether the object moves "left", "right" or stands "still", as the judge sees it; "unseen" without an object."""
    return [
        "unseen" if x != x else "still" if abs(x) < _LEAST_TRAVEL else "right" if x > 0 else "left"
        for x in travelled(judge, clips).tolist()
    ]
