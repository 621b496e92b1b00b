"""``tide guard draw``: a prompt drawn without a guard and under it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tide.errors import TideError

if TYPE_CHECKING:
    from tide.cli.guard import Guard


def draw(asked: Guard) -> None:
    """Draws both from the same noise, writes them with what the guard met, and says that."""
    from tide.cli import common
    from tide.cli.edit_files import mean_change, write_pictures
    from tide.cli.options import Autoencoder
    from tide.editing.draw import draw_image
    from tide.guards import guard, load_guard
    from tide.guards.guard_file import LATENTS

    if asked.prompt is None or asked.out is None:
        raise TideError("a guard is shown at work on a prompt; give --prompt and --out")
    folder, out = Path(str(asked.folder)), Path(asked.out)
    made = load_guard(folder)
    autoencoder = Autoencoder(sae=str(folder / LATENTS))
    pipeline = common.pipeline_of(asked.model, autoencoder)
    sampling: dict[str, Any] = {
        "n_steps": asked.n_steps,
        "guidance_scale": asked.guidance,
        "seed": asked.seed,
        "size": asked.source.size,
    }
    with common.output_folder(out):
        adapter = common.adapter_of(asked.model, pipeline)
        adapter.check_steps(asked.n_steps)
        made.made_for.check(adapter, made.concept)
        before = draw_image(adapter, asked.prompt, **sampling)
        with guard(adapter.pipe, folder) as log:
            after = draw_image(adapter, asked.prompt, **sampling)
        moved = mean_change(before, after)
        report: dict[str, Any] = {"guard": str(folder), "mean_pixel_change": moved, "guards": log.rows()}
        found = {"data": {"prompt": asked.prompt}, "configuration": sampling, "measured": report}
        holds = common.about("edit", adapter, pipeline, made.when.model, autoencoder, **found)
        label = f"guard of {made.concept}"
        write_pictures(out, before, {"guarded": after}, [label], asked.prompt, report, holds, asked.made_by())
    print(f"{log}\nPixels moved by {moved:.1f} (mean, of 255); see {out / 'strip.png'}.")
