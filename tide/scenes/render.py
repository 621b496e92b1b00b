"""Draws a :class:`~tide.scenes.scene.Scene` with numpy: the image and one pixel mask per concept in it.

Shapes are signed distances in pixels; a shape's coverage of a pixel is ``clip(1/2 - distance, 0, 1)``, which
anti-aliases edges without supersampling. Light falls from the upper left, shadows to the right.

The way an object faces shows in its shape: the front of a house or a cube, the lean of a cone or a tree, the spot of a
sphere. An old object is faded and stained, an ornate one wears bands of gilded trim (the paper's Rococo), and a
sketched scene is drawn in pencil and wash on paper, ground and sky included.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tide.scenes.scene import CONCEPTS, Scene

SIZE = 64

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.13),
    "yellow": (0.96, 0.82, 0.12),
    "green": (0.12, 0.66, 0.20),
    "blue": (0.16, 0.32, 0.90),
    "purple": (0.58, 0.18, 0.70),
    "white": (0.96, 0.96, 0.96),
}
GROUND: dict[str, tuple[float, float, float]] = {
    "grass": (0.42, 0.52, 0.26),
    "sand": (0.80, 0.68, 0.48),
    "snow": (0.80, 0.86, 0.93),
}
ROOF = (0.36, 0.22, 0.20)
DOOR = (0.24, 0.14, 0.09)
WINDOW = (0.70, 0.88, 0.96)
TRUNK = (0.42, 0.27, 0.15)
GOLD = (0.98, 0.80, 0.25)
LACQUER = (0.17, 0.08, 0.05)
DUST = (0.47, 0.44, 0.38)
STAIN = (0.17, 0.15, 0.09)
PAPER = (0.95, 0.92, 0.85)

Y_GRID, X_GRID = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


#: What a pixel belongs to, in the order of :attr:`Rendering.regions`.
REGIONS = ("sky", "ground", "shadow", "object")


@dataclass
class Rendering:
    """``image [64, 64, 3]`` float32 in [0, 1]; ``masks`` concept -> bool ``[64, 64]``, present concepts only;
    ``regions`` int64 ``[64, 64]``, the index in :data:`REGIONS` of what covers most of each pixel.

    Attributes:
        scene: what was rendered.
        image: ``[64, 64, 3]`` float32 in [0, 1].
        masks: concept -> bool ``[64, 64]``.
        regions: ``[64, 64]`` int64.
    """

    scene: Scene
    image: Array
    masks: dict[str, Mask] = field(default_factory=dict)
    regions: NDArray[np.int64] = field(default_factory=lambda: np.zeros((SIZE, SIZE), np.int64))


def _coverage(distance: Array) -> Array:
    return np.clip(0.5 - distance, 0.0, 1.0)


def _ellipse(cx: float, cy: float, a: float, b: float) -> Array:
    return (np.hypot((X_GRID - cx) / a, (Y_GRID - cy) / b) - 1.0) * np.float32(min(a, b))


def _polygon(points: list[tuple[float, float]]) -> Array:
    """Signed distance to the lines of a convex polygon given in either orientation."""
    xy = np.asarray(points, dtype=np.float32)
    edges = np.roll(xy, -1, axis=0) - xy
    area = float(np.sum(xy[:, 0] * np.roll(xy[:, 1], -1) - np.roll(xy[:, 0], -1) * xy[:, 1]))
    distance = np.full((SIZE, SIZE), -np.inf, dtype=np.float32)
    for (x, y), (dx, dy) in zip(xy, edges, strict=True):
        outward = ((X_GRID - x) * dy - (Y_GRID - y) * dx) / np.hypot(dx, dy)
        distance = np.maximum(distance, outward if area > 0 else -outward)
    return distance


class _Canvas:
    """Paints shapes over an image and keeps, per name, the share of each pixel that is still visible."""

    def __init__(self, image: Array) -> None:
        self.image = image
        self.visible: dict[str, Array] = {}

    def paint(self, coverage: Array, colour: Array | tuple[float, float, float], *names: str) -> None:
        self.tint(coverage, colour)
        for name in self.visible:
            self.visible[name] = self.visible[name] * (1 - coverage)
        for name in names:
            # What was visible has been dimmed above, so the shares of two faces in one pixel add up.
            self.visible[name] = self.visible.get(name, np.float32(0.0)) + coverage

    def tint(self, coverage: Array, colour: Array | tuple[float, float, float]) -> None:
        """Recolours pixels; what they belong to stays the same."""
        alpha = coverage[..., None]
        self.image = self.image * (1 - alpha) + np.asarray(colour, dtype=np.float32) * alpha


@dataclass(frozen=True)
class _Pose:
    """Where the object stands: its foot (cx, base) and its height in pixels; ``facing`` is 1 for left, -1 for right."""

    cx: float
    base: float
    height: float
    facing: float

    def at(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        """Object coordinates (u away from where it faces, v up, height 1) to pixels."""
        return [(self.cx + self.facing * u * self.height, self.base - v * self.height) for u, v in points]

    def grid(self) -> tuple[Array, Array]:
        """Object coordinates (u, v) of every pixel."""
        return self.facing * (X_GRID - self.cx) / self.height, (self.base - Y_GRID) / self.height


def _ball(canvas: _Canvas, cx: float, cy: float, r: float, colour: Array, *names: str) -> None:
    nx, ny = (X_GRID - cx) / r, (Y_GRID - cy) / r
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
    light = np.clip(-0.52 * nx - 0.60 * ny + 0.61 * nz, 0, 1)[..., None]
    shaded = np.clip(colour * (0.40 + 0.72 * light) + 0.30 * light**12, 0, 1)
    canvas.paint(_coverage(_ellipse(cx, cy, r, r)), shaded, *names)


def _sphere(canvas: _Canvas, pose: _Pose, colour: Array) -> None:
    r = 0.46 * pose.height
    _ball(canvas, pose.cx, pose.base - r, r, colour, "object")
    ((x, y),) = pose.at((-0.20, 0.50))
    canvas.tint(_coverage(_ellipse(x, y, 0.13 * pose.height, 0.17 * pose.height)), 0.22 * colour)


def _cube(canvas: _Canvas, pose: _Pose, colour: Array) -> None:
    faces = (
        ([(-0.50, 0.14), (0.16, 0.0), (0.16, 0.60), (-0.50, 0.70)], 0.98),
        ([(0.16, 0.0), (0.50, 0.20), (0.50, 0.76), (0.16, 0.60)], 0.48),
        ([(-0.50, 0.70), (0.16, 0.60), (0.50, 0.76), (-0.14, 0.88)], 1.20),
    )
    for points, shade in faces:
        canvas.paint(_coverage(_polygon(pose.at(*points))), np.clip(colour * shade, 0, 1), "object")


def _cone(canvas: _Canvas, pose: _Pose, colour: Array) -> None:
    (ax, ay), (bx, by) = pose.at((-0.34, 1.02), (0.08, 0.10))
    half = 0.42 * pose.height
    distance = np.minimum(
        _polygon([(ax, ay), (bx - half, by), (bx + half, by)]), _ellipse(bx, by, half, 0.10 * pose.height)
    )
    down = np.clip((Y_GRID - ay) / (by - ay), 0.05, 1.0)
    across = np.clip((X_GRID - ax - (bx - ax) * down) / (half * down), -1, 1)
    light = np.clip(0.78 * np.sqrt(1 - across**2) - 0.62 * across, 0, 1)[..., None]
    canvas.paint(_coverage(distance), np.clip(colour * (0.42 + 0.72 * light), 0, 1), "object")


def _house(canvas: _Canvas, pose: _Pose, colour: Array) -> None:
    def part(points: list[tuple[float, float]], tint: Array | tuple[float, float, float], *names: str) -> None:
        canvas.paint(_coverage(_polygon(pose.at(*points))), tint, "object", *names)

    roof = np.asarray(ROOF, dtype=np.float32)
    part([(0.24, 0.0), (0.52, 0.12), (0.52, 0.62), (0.24, 0.56)], colour * 0.60)
    part([(-0.50, 0.0), (0.24, 0.0), (0.24, 0.56), (-0.50, 0.56)], colour * 0.95)
    part([(0.30, 0.52), (0.60, 0.60), (0.14, 0.98)], roof * 0.75, "roof")
    part([(-0.58, 0.52), (0.30, 0.52), (0.14, 0.98), (-0.38, 0.98)], roof, "roof")
    part([(-0.40, 0.0), (-0.14, 0.0), (-0.14, 0.40), (-0.40, 0.40)], DOOR, "door")
    part([(-0.05, 0.18), (0.17, 0.18), (0.17, 0.42), (-0.05, 0.42)], WINDOW, "window")


def _tree(canvas: _Canvas, pose: _Pose, colour: Array) -> None:
    trunk = _polygon(pose.at((0.02, 0.0), (0.26, 0.0), (0.02, 0.5), (-0.16, 0.5)))
    canvas.paint(_coverage(trunk), TRUNK, "object", "trunk")
    for u, v, r in ((-0.30, 0.55, 0.24), (0.16, 0.54, 0.24), (-0.20, 0.76, 0.29)):
        ((x, y),) = pose.at((u, v))
        _ball(canvas, x, y, r * pose.height, colour, "object", "crown")


def _smooth_noise(u: Array, v: Array, rng: np.random.Generator) -> Array:
    """Normal values at knots an eighth of the object's height apart, interpolated bilinearly between them."""
    knots = rng.normal(size=(12, 14)).astype(np.float32)
    row, column = np.clip(8 * v + 1, 0, 10.999), np.clip(8 * u + 6.5, 0, 12.999)
    i, j = row.astype(int), column.astype(int)
    down, across = row - i, column - j
    upper = knots[i, j] * (1 - across) + knots[i, j + 1] * across
    lower = knots[i + 1, j] * (1 - across) + knots[i + 1, j + 1] * across
    return np.asarray(upper * (1 - down) + lower * down)


def _age(canvas: _Canvas, pose: _Pose, rng: np.random.Generator) -> None:
    """Dust over the whole object, stains on about a third of it."""
    shape = canvas.visible["object"]
    canvas.tint(0.38 * shape, DUST)
    stains = np.clip(3 * (_smooth_noise(*pose.grid(), rng) - 0.25), 0, 1)
    canvas.tint(0.62 * stains * shape, STAIN)


def _gild(canvas: _Canvas, pose: _Pose) -> None:
    """Three bands of gold beads on lacquer around the object."""
    u, v = pose.grid()
    shape = canvas.visible["object"]
    beads = np.cos(2 * np.pi * u / 0.19) > -0.5
    for height in (0.14, 0.49, 0.80):
        band = np.clip((0.065 - np.abs(v - height)) * pose.height + 0.5, 0, 1) * shape
        canvas.tint(band, np.where(beads[..., None], np.array(GOLD, np.float32), np.array(LACQUER, np.float32)))


def _sketch(image: Array) -> Array:
    """Pencil along the edges of brightness, the colours a thin wash on paper."""
    brightness = image @ np.array([0.3, 0.6, 0.1], np.float32)
    down, across = np.gradient(brightness)
    pencil = 0.85 * np.clip(5 * np.hypot(down, across) - 0.12, 0, 1)[..., None]
    washed = 0.55 * image + 0.45 * np.array(PAPER, np.float32)
    return np.asarray(washed * (1 - pencil))


_DRAW = {"sphere": _sphere, "cube": _cube, "cone": _cone, "house": _house, "tree": _tree}


def _setting(scene: Scene, rng: np.random.Generator) -> tuple[float, _Pose]:
    """The row of the horizon, and how the object stands; the first numbers that ``rng`` gives."""
    near = scene.depth == "near"
    return float(rng.uniform(27, 31)), _Pose(
        cx=float(rng.uniform(26, 34) if near else rng.uniform(18, 44)),
        base=float(rng.uniform(54, 58) if near else rng.uniform(39, 42)),
        height=float(rng.uniform(40, 44) if near else rng.uniform(20, 22)),
        facing=1.0 if scene.orientation == "left" else -1.0,
    )


def place_of(scene: Scene) -> float:
    """Where the object stands, in pixels from the left."""
    return _setting(scene, np.random.default_rng([scene.seed, 11]))[1].cx


def render(scene: Scene, shift: float = 0.0) -> Rendering:
    """The image of ``scene`` and its masks; the same scene gives the same bits.

    ``shift`` moves the object, with its shadow, by so many pixels to the right; all else stays where it is.

    A mask is True where a concept covers more than half of a pixel. ``grass``, ``sand`` and ``snow`` cover the visible
    ground, ``sketched`` the whole image, parts and ``shadow`` themselves, and all other concepts the object.
    """
    rng = np.random.default_rng([scene.seed, 11])
    horizon, standing = _setting(scene, rng)
    pose = replace(standing, cx=standing.cx + shift)

    sky_top = np.array([0.36, 0.58, 0.86], np.float32) + rng.uniform(-0.05, 0.05, 3).astype(np.float32)
    sky_low = np.array([0.78, 0.87, 0.95], np.float32) + rng.uniform(-0.04, 0.04, 3).astype(np.float32)
    ground = np.array(GROUND[scene.ground], np.float32) + rng.uniform(-0.03, 0.03, 3).astype(np.float32)
    colour = np.clip(np.array(PALETTE[scene.colour], np.float32) + rng.uniform(-0.04, 0.04, 3), 0, 1)

    up = np.clip(Y_GRID / horizon, 0, 1)[..., None]
    canvas = _Canvas(sky_top * (1 - up) + sky_low * up)
    forward = np.clip((Y_GRID - horizon) / (SIZE - horizon), 0, 1)[..., None]
    canvas.paint(_coverage(horizon - Y_GRID), ground * (0.88 + 0.20 * forward), "ground")

    if scene.shadow == "with":
        length = 0.62 * pose.height
        shade = _coverage(
            _ellipse(pose.cx + 0.75 * length, pose.base - 0.06 * pose.height, 1.05 * length, 0.17 * pose.height)
        )
        canvas.paint(0.62 * shade, (0.06, 0.07, 0.12))
        canvas.visible["shadow"] = shade
    _DRAW[scene.cls](canvas, pose, colour.astype(np.float32))
    if scene.age == "old":
        _age(canvas, pose, rng)
    if scene.style == "ornate":
        _gild(canvas, pose)
    image = _sketch(canvas.image) if scene.style == "sketched" else canvas.image

    visible = canvas.visible
    own = ("shadow", *CONCEPTS["part"])
    shares = {name: share for name, share in visible.items() if name in own}
    of_object = (scene.depth, scene.cls, scene.colour, scene.age, scene.orientation, scene.style)
    shares |= {concept: visible["object"] for concept in of_object}
    shares[scene.ground] = visible["ground"]
    if scene.style == "sketched":
        shares["sketched"] = np.ones_like(visible["object"])
    masks = {name: share > 0.5 for name, share in shares.items()}
    regions = np.select(
        [visible["object"] > 0.5, shares.get("shadow", np.float32(0)) > 0.5, visible["ground"] > 0.5], [3, 2, 1]
    )
    return Rendering(
        scene,
        np.clip(image, 0, 1).astype(np.float32),
        {name: mask for name, mask in masks.items() if mask.any()},
        regions.astype(np.int64),
    )
