"""The strategies of editing that Fig. 6 compares: their strengths, what each knows of the target, and its rivals."""

from __future__ import annotations

from dataclasses import dataclass

#: What a strategy is tried on.
EVERYTHING = "every attribute"
UNGILDING = "ornate to plain"
STYLES = "to another style"


@dataclass(frozen=True)
class Strategy:
    """``factors``: its strengths; ``middle``: the one at which step ranges are compared. ``raw``: without the SAE."""

    label: str
    factors: tuple[float, ...]
    middle: float
    knows: str
    tasks: str = EVERYTHING
    raw: bool = False


STRATEGIES: dict[str, Strategy] = {
    "contrast": Strategy("contrast of latents", (0.5, 1.0, 1.5, 2.5), 1.5, "one image"),
    "steer contrast": Strategy("contrast, raw", (0.5, 0.75, 1.0, 1.5), 1.0, "one image", raw=True),
    "steer bounded": Strategy("contrast, raw and bounded", (0.5, 1.0, 1.5, 2.5), 1.5, "one image", raw=True),
    "altered": Strategy("contrast in n tokens", (4, 16, 32, 64), 16, "one image"),
    "towards": Strategy("global replacement", (0.5, 0.75, 1.0), 1.0, "the target's run"),
    "scale target": Strategy("target's indices scaled", (1.5, 3.0, 6.0), 3.0, "the target's run"),
    "steer towards": Strategy("replacement, raw", (0.5, 0.75, 1.0), 1.0, "the target's run", raw=True),
    "swap": Strategy("class means exchanged", (0.5, 1.0, 2.0), 2.0, "class means"),
    "steer": Strategy("class means, raw", (0.25, 0.5, 1.0), 1.0, "class means", raw=True),
    "erase top": Strategy("top K erased", (1, 4, 16, 64), 4, "nothing", UNGILDING),
    "invert top": Strategy("top K inverted", (1, 4, 16), 4, "nothing", UNGILDING),
    "transfer": Strategy("style transfer", (1.0, 2.0, 4.0), 2.0, "one image, no places", STYLES),
    "steer transfer": Strategy("style transfer, raw", (0.5, 1.0, 2.0), 1.0, "one image, no places", STYLES, raw=True),
    "steer transfer bounded": Strategy(
        "style transfer, raw and bounded", (1.0, 2.0, 4.0), 2.0, "one image, no places", STYLES, raw=True
    ),
}
#: Ours against what is given the same.
RIVALS = {"contrast": ("steer contrast", "steer bounded"), "towards": ("steer towards",), "swap": ("steer",),
          "transfer": ("steer transfer", "steer transfer bounded")}  # fmt: skip
