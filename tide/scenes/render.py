"""Draws a :class:`~tide.scenes.scene.Scene` with numpy: the image and one pixel mask per concept in it.

Shapes are signed distances in pixels; a shape's coverage of a pixel is ``clip(1/2 - distance, 0, 1)``, which
anti-aliases edges without supersampling. Light falls from the upper left, shadows to the right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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

Y_GRID, X_GRID = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


@dataclass
class Rendering:
    """``image [64, 64, 3]`` float32 in [0, 1]; ``masks`` concept -> bool ``[64, 64]``, present concepts only."""

    scene: Scene
    image: Array
    masks: dict[str, Mask] = field(default_factory=dict)


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
        alpha = coverage[..., None]
        self.image = self.image * (1 - alpha) + np.asarray(colour, dtype=np.float32) * alpha
        for name in self.visible:
            self.visible[name] = self.visible[name] * (1 - coverage)
        for name in names:
            # What was visible is dimmed above: two faces that share a pixel between them cover it together.
            self.visible[name] = self.visible.get(name, np.float32(0.0)) + coverage


@dataclass(frozen=True)
class _Pose:
    """Where the object stands: its foot (cx, base) and its height in pixels."""

    cx: float
    base: float
    height: float

    def at(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        """Object coordinates (u right, v up, height 1) to pixels."""
        return [(self.cx + u * self.height, self.base - v * self.height) for u, v in points]


def _ball(canvas: _Canvas, cx: float, cy: float, r: float, colour: Array, *names: str) -> None:
    nx, ny = (X_GRID - cx) / r, (Y_GRID - cy) / r
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
    light = np.clip(-0.52 * nx - 0.60 * ny + 0.61 * nz, 0, 1)[..., None]
    shaded = np.clip(colour * (0.40 + 0.72 * light) + 0.30 * light**12, 0, 1)
    canvas.paint(_coverage(_ellipse(cx, cy, r, r)), shaded, *names)


def _sphere(canvas: _Canvas, pose: _Pose, colour: Array) -> None:
    r = 0.46 * pose.height
    _ball(canvas, pose.cx, pose.base - r, r, colour, "object")


def _cube(canvas: _Canvas, pose: _Pose, colour: Array) -> None:
    faces = (
        ([(-0.50, 0.14), (-0.06, 0.0), (-0.06, 0.62), (-0.50, 0.74)], 0.95),
        ([(-0.06, 0.0), (0.50, 0.18), (0.50, 0.78), (-0.06, 0.62)], 0.58),
        ([(-0.50, 0.74), (-0.06, 0.62), (0.50, 0.78), (0.06, 0.90)], 1.20),
    )
    for points, shade in faces:
        canvas.paint(_coverage(_polygon(pose.at(*points))), np.clip(colour * shade, 0, 1), "object")


def _cone(canvas: _Canvas, pose: _Pose, colour: Array) -> None:
    (ax, ay), (_, by) = pose.at((0.0, 1.06), (0.0, 0.10))
    half = 0.44 * pose.height
    distance = np.minimum(
        _polygon([(ax, ay), (ax - half, by), (ax + half, by)]), _ellipse(ax, by, half, 0.10 * pose.height)
    )
    width = half * np.clip((Y_GRID - ay) / (by - ay), 0.05, 1.0)
    across = np.clip((X_GRID - ax) / width, -1, 1)
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
    trunk = _polygon(pose.at((-0.12, 0.0), (0.12, 0.0), (0.09, 0.5), (-0.09, 0.5)))
    canvas.paint(_coverage(trunk), TRUNK, "object", "trunk")
    for u, v, r in ((-0.23, 0.54, 0.24), (0.23, 0.54, 0.24), (0.0, 0.74, 0.31)):
        ((x, y),) = pose.at((u, v))
        _ball(canvas, x, y, r * pose.height, colour, "object", "crown")


_DRAW = {"sphere": _sphere, "cube": _cube, "cone": _cone, "house": _house, "tree": _tree}


def render(scene: Scene) -> Rendering:
    """The image of ``scene`` and its masks; the same scene gives the same bits.

    A mask is where a concept covers more than half of a pixel. ``near`` and ``far``, the class and the colour
    cover the object; ``grass``, ``sand`` or ``snow`` the visible ground.
    """
    rng = np.random.default_rng([scene.seed, 11])
    near = scene.depth == "near"
    horizon = float(rng.uniform(27, 31))
    pose = _Pose(
        cx=float(rng.uniform(26, 34) if near else rng.uniform(18, 44)),
        base=float(rng.uniform(54, 58) if near else rng.uniform(39, 42)),
        height=float(rng.uniform(40, 44) if near else rng.uniform(20, 22)),
    )

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

    visible = canvas.visible
    own = ("shadow", *CONCEPTS["part"])
    shares = {name: share for name, share in visible.items() if name in own}
    shares |= {concept: visible["object"] for concept in (scene.depth, scene.cls, scene.colour)}
    shares[scene.ground] = visible["ground"]
    masks = {name: share > 0.5 for name, share in shares.items()}
    image = np.clip(canvas.image, 0, 1).astype(np.float32)
    return Rendering(scene, image, {name: mask for name, mask in masks.items() if mask.any()})
