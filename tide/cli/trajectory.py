"""``tide trajectory``: how the latents of a prompt change from step to step, beside the picture (section 5.5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tide.cli.drawing import Drawing
from tide.cli.usage import Aspect, fast_beside

if TYPE_CHECKING:
    from tide.adapters import Adapter
    from tide.interpretation.following import Followed
    from tide.runs import Contents


@dataclass(frozen=True, kw_only=True)
class Trajectory(Drawing):
    """Follow the latents along a sampling run.

    Draws a prompt and compares the latents of consecutive steps; with --towards or --change also with those of another
    prompt from the same seed.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (fast_beside("n_steps"),)

    def run(self) -> None:
        from tide.cli.common import about, adapter_of, output_folder, pipeline_of, sae_of
        from tide.interpretation.following import check_length, follow

        check_length(self.steps_drawn)
        texts, pipeline = self.texts, pipeline_of(self.model, self.autoencoder)
        with output_folder(Path(self.out)):
            adapter = adapter_of(self.model, pipeline, sae=self.autoencoder.sae)
            adapter.check_steps(self.steps_drawn)
            model = sae_of(self.autoencoder, adapter, pipeline)
            found = follow(adapter, model, self.prompt, texts.get("towards"), **self.sampling)
            options = {"data": texts, "configuration": self.sampling}
            self._write(adapter, found, about("trajectory", adapter, pipeline, model, self.autoencoder, **options))
        same = "; both prompts draw the same image" if found.same else ""
        print(
            f"Latents of block {model.config.block} {_in_words(found)}{same}; see {Path(self.out) / 'trajectory.png'}."
        )

    def _write(self, adapter: Adapter, found: Followed, holds: Contents) -> None:
        """Writes the table, the figures and the chart or none of them, then run.json."""
        from tide.cli.common import writing
        from tide.files import json_writer, replace_files
        from tide.interpretation.trajectory_chart import draw_trajectory
        from tide.runs import FileKind, write_run
        from tide.tables import csv_writer

        out = Path(self.out)
        change = None if found.change is None else {"step": found.changed_at, "strength": found.change.strength}
        files: dict[str, FileKind] = {
            "trajectory.csv": "table",
            "trajectory.json": "figures",
            "trajectory.png": "chart",
        }
        with writing(out):
            replace_files(
                {
                    out / "trajectory.csv": csv_writer(found.rows),
                    out / "trajectory.json": json_writer({"abrupt_change": change, "steps": found.rows}),
                    out / "trajectory.png": lambda path: draw_trajectory(path, adapter, found),
                }
            )
            holds = replace(holds, measured={"abrupt_change": change}, files=files)
            write_run(out, holds, self.made_by())


def _in_words(found: Followed) -> str:
    step = found.changed_at
    if found.change is None or step is None:
        return f"change without a dip of the consecutive cosine over {found.n_steps} steps"
    return (
        f"change most abruptly before step {step} of {found.n_steps} (timestep {found.source.timesteps[step]:.0f}; the "
        f"consecutive cosine dips by {found.change.strength:.0%} of its range)"
    )
