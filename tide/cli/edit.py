"""``tide edit``: one prompt, before and after an edit of its latents, at growing strength."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tide.cli.edit_options import EditOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from tide.adapters import Adapter
    from tide.runs import Contents
    from tide.sae import TIDE


@dataclass(frozen=True, kw_only=True)
class Edit(EditOptions):
    """Draw a prompt before and after an edit of its latents, from the same noise."""

    def run(self) -> None:
        from tide.cli import edit_scores
        from tide.cli.common import about, adapter_of, output_folder, pipeline_of, sae_of

        self.check()
        scorers = edit_scores.load(self.clip, self.lpips, self.texts)
        pipeline = pipeline_of(self.model, self.autoencoder)
        kept = [] if self.save_target is None else [Path(self.save_target).parent]
        with output_folder(Path(self.out), *kept):
            adapter = adapter_of(self.model, pipeline)
            adapter.check_steps(self.steps_drawn)
            model = sae_of(self.autoencoder, adapter, pipeline)
            before, after = self._drawn(adapter, model)
            scores = scorers.score(before, list(after.values()))
            rows = [
                {**setting, "mean_pixel_change": _mean_change(before, after[name]), **row}
                for (name, setting), row in zip(self.settings.items(), scores.rows, strict=True)
            ]
            sae = {"block": model.config.block, "n_latents": model.n_latents, "k": model.config.k}
            used = {**self.sampling, "strength": self.strengths}
            found: dict[str, Any] = {"data": self.texts, "configuration": used, "measured": {"edits": rows}}
            holds = about("edit", adapter, pipeline, model, self.autoencoder, **found)
            self._write(before, after, {"edits": rows, **scores.report, "sae": sae}, holds)
        where = "in {tokens} tokens" if self.altered else "at strength {strength:g}"
        moved = ", ".join(f"{row['mean_pixel_change']:.1f} {where.format(**row)}" for row in rows)
        print(
            f"Edited block {model.config.block}: pixels moved by {moved} (mean, of 255){scores.line}; see "
            f"{Path(self.out) / 'strip.png'}."
        )

    def _drawn(self, adapter: Adapter, model: TIDE) -> tuple[Image, dict[str, Image]]:
        """The unedited picture and the edited ones."""
        from tide.cli.edit_target import edits_of
        from tide.editing import draw_edits

        edits, tokens = edits_of(self, adapter, model)
        return draw_edits(
            adapter,
            model,
            self.prompt,
            edits,
            **self.sampling,
            steps=self.steps,
            tokens=tokens,
            branch=self.branch,
            renormalise=self.renormalise,
        )

    def _write(self, before: Image, after: dict[str, Image], report: dict[str, Any], holds: Contents) -> None:
        """Writes all pictures and edit.json or none of them, then run.json."""
        from tide.cli.common import writing
        from tide.files import json_writer, replace_files
        from tide.pictures import beside, image_writer
        from tide.runs import FileKind, write_run

        out = Path(self.out)
        pictures = {"before": before, **{f"after-{name}": image for name, image in after.items()}}
        pictures["strip"] = beside([before, *after.values()])
        files: dict[str, FileKind] = {**{f"{name}.png": "picture" for name in pictures}, "edit.json": "figures"}
        with writing(out):
            writers = {out / f"{name}.png": image_writer(picture) for name, picture in pictures.items()}
            replace_files({**writers, out / "edit.json": json_writer(report)})
            write_run(out, replace(holds, files=files), self.made_by())


def _mean_change(before: Image, after: Image) -> float:
    """Mean absolute difference of the pixels' channels, of 255."""
    import numpy as np

    return float(np.abs(np.asarray(before, float) - np.asarray(after, float)).mean())
