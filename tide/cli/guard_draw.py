"""``tide guard draw``: a prompt drawn without a guard and under it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tide.cli.options import Model


def draw(folder: Path, out: Path, prompt: str, model: Model, sampling: dict[str, Any], made_by: dict[str, Any]) -> None:
    """Draws ``prompt`` both ways from the same noise, writes the pictures with what the guard in ``folder`` met, and
    says that. ``sampling``: how, as :func:`tide.editing.draw.draw_image` takes it."""
    from tide.cli import common
    from tide.cli.edit_files import mean_change, write_pictures
    from tide.cli.options import Autoencoder
    from tide.editing.draw import draw_image
    from tide.guards import guard, load_guard
    from tide.guards.guard_file import LATENTS

    made = load_guard(folder)
    autoencoder = Autoencoder(sae=str(folder / LATENTS))
    pipeline = common.pipeline_of(model, autoencoder)
    with common.output_folder(out):
        adapter = common.adapter_of(model, pipeline)
        adapter.check_steps(sampling["n_steps"])
        made.made_for.check(adapter, made.concept)
        before = draw_image(adapter, prompt, **sampling)
        with guard(adapter.pipe, folder) as log:
            after = draw_image(adapter, prompt, **sampling)
        moved = mean_change(before, after)
        report: dict[str, Any] = {"guard": str(folder), "mean_pixel_change": moved, "guards": log.rows()}
        found: dict[str, Any] = {"data": {"prompt": prompt}, "configuration": sampling, "measured": report}
        holds = common.about("edit", adapter, pipeline, made.when.model, autoencoder, **found)
        write_pictures(out, before, {"guarded": after}, [f"guard of {made.concept}"], prompt, report, holds, made_by)
    print(f"{log}\nPixels moved by {moved:.1f} (mean, of 255); see {out / 'strip.png'}.")
