"""Fig. 6: what is read off the numbers, on numbers made for it."""

from __future__ import annotations

from tide.studies import fig6
from tide.studies.compare import equal_preservation


def test_the_sentence_of_fig6_is_of_its_numbers():
    def curve(*points: tuple[float, float]) -> list[dict]:
        return [
            {"factor": i, "success": s, "preserved": p, "interval": {"success": (0.0, 1.0)}}
            for i, (s, p) in enumerate(points)
        ]

    curves = {
        "contrast": curve((0.4, 0.96), (0.8, 0.85), (0.9, 0.6)),
        "steer contrast": curve((0.4, 0.97), (0.7, 0.82), (0.95, 0.55)),
        "steer bounded": curve((0.3, 0.95), (0.5, 0.9)),
    }
    row = {"images": 100, "outside": 1.5}
    chosen = {
        "contrast": {**row, "success": 0.8, "preserved": 0.85, "both": 0.75},
        "steer contrast": {**row, "success": 0.7, "preserved": 0.82, "both": 0.6},
        "steer bounded": {**row, "success": 0.5, "preserved": 0.9, "both": 0.5},
        "prompt": {**row, "success": 1.0, "preserved": 0.95, "both": 0.95, "outside": 4.0},
    }
    # 95 %: 40 and 40; 90 %: 40 and 50; 80 %: 80 and 70; 70 %: the same; 50 %: 90 and 95.
    assert fig6.verdict_of(equal_preservation(curves), chosen) == (
        "From one reference image the contrast of latents changes 80% of 100 images and keeps all else in 85% (both "
        "75%), the best of the raw activations 70% and 82% (both 60%); it is above them at 2 of 5 levels of "
        "preservation and not below at 3; prompt replacement reaches 95%, 20% more; pixels outside the edit's region "
        "move by 1.5 of 255 against 4.0 by the prompt."
    )
