"""``tide edit``: one prompt, before and after an edit of its latents, at growing strength."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tide.cli.edit_files import mean_change, write_pictures
from tide.cli.edit_met import as_row, remarks
from tide.cli.edit_options import NOT_SEARCHED, EditOptions
from tide.cli.edit_search import Searching
from tide.cli.options import value_of
from tide.messages import counted

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tide.adapters import Adapter
    from tide.cli.edit_scores import Scorers
    from tide.cli.edit_target import Edits
    from tide.editing import Overlay, Recipe, Where
    from tide.editing.met import Met
    from tide.sae import TIDE

#: Mean change of the pixels, of 255. On the bundled pipeline half of the broken pictures move by more, and of the whole
#: ones every twentieth, mostly because the edit worked.
MUCH = 25


@dataclass(frozen=True, kw_only=True)
class Edit(EditOptions):
    """Draw a prompt before and after an edit of its latents, from the same noise."""

    def run(self) -> None:
        from tide.editing import Recipe

        self.check()
        if self.recipe is None:
            self._run()
        else:
            recipe = Recipe.load(self.recipe)
            replace(self, prompt=recipe.prompt)._run(recipe)

    def _run(self, recipe: Recipe | None = None) -> None:
        from tide.cli import edit_scores
        from tide.cli.common import adapter_of, output_folder, pipeline_of, sae_of
        from tide.cli.edit_recipe import FromRecipe

        scorers = edit_scores.load(self.clip, self.lpips, self.texts)
        pipeline = pipeline_of(self.model, self.autoencoder)
        kept = [] if self.save_target is None else [Path(self.save_target).parent]
        with output_folder(Path(self.out), *kept):
            adapter = adapter_of(self.model, pipeline, sae=self.autoencoder.sae)
            if recipe is None:
                adapter.check_steps(self.steps_drawn)
            model = sae_of(self.autoencoder, adapter, pipeline)
            if recipe is not None:
                FromRecipe(self, recipe, adapter, pipeline, model, scorers).run()
            elif self.search:
                Searching(self, adapter, pipeline, model, scorers).run()
            else:
                self._edit(adapter, pipeline, model, scorers)

    def _edit(self, adapter: Adapter, pipeline: str, model: TIDE, scorers: Scorers) -> None:
        """Draws, writes and says what came of it."""
        from tide.cli import edit_guard
        from tide.cli.common import about
        from tide.cli.edit_target import edits_of

        # Targets are recorded unguarded: they are not among the pictures, and would be of other words.
        edits = edits_of(self, adapter, model)
        with edit_guard.guarded(adapter, self.guard) as log:
            before, after, met, steps = self._drawn(adapter, model, *edits)
        scores = scorers.score(before, list(after.values()))
        rows = [
            {**setting, "mean_pixel_change": mean_change(before, after[name]), **as_row(met[name]), **row}
            for (name, setting), row in zip(self.settings.items(), scores.rows, strict=True)
        ]
        sae = {"block": model.config.block, "n_latents": model.n_latents, "k": model.config.k}
        used = {**self.sampling, "strength": self.strengths}
        found: dict[str, Any] = {"data": self.texts, "configuration": used, "measured": {"edits": rows}}
        holds = about("edit", adapter, pipeline, model, self.autoencoder, **found)
        labels = [self.where(row).removeprefix("at ") for row in rows]
        report = {"edits": rows, **scores.report, "sae": sae, **edit_guard.report(log)}
        title = " → ".join(self.texts.values())
        shown = {self.where(row): steps[name] for name, row in zip(after, rows, strict=True) if name in steps}
        more = {"where": self.drawn_mask.strip(shown, self.prompt)} if shown else {}
        write_pictures(Path(self.out), before, after, labels, title, report, holds, self.made_by(), more)
        moved = ", ".join(f"{row['mean_pixel_change']:.1f} {self.where(row)}" for row in rows)
        for line in remarks({self.where(row): met[name] for name, row in zip(met, rows, strict=True)}):
            print(line)
        if log is not None:
            print(log.summary)
        if max(row["mean_pixel_change"] for row in rows) >= MUCH:
            print(
                f"A mean change of {MUCH} or more is a lot. If a picture broke, the same command with --search"
                f"{self._without} and another --out finds steps, branch and strength that keep it whole."
            )
        print(
            f"Edited block {model.config.block}: pixels moved by {moved} (mean, of 255){scores.line}; see "
            f"{Path(self.out) / 'strip.png'}{' and where.png' if more else ''}."
        )

    @property
    def _without(self) -> str:
        """The options of this command that ``--search`` refuses, in words."""
        given = [name for name in NOT_SEARCHED.split() if value_of(self, name) not in (None, "conditional")]
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        return f" in place of {flags}" if flags else ""

    def where(self, row: dict[str, Any]) -> str:
        """Which of the pictures a row of edit.json is about."""
        return f"in {counted(row['tokens'], 'token')}" if self.altered else f"at strength {row['strength']:g}"

    def _drawn(
        self, adapter: Adapter, model: TIDE, edits: Edits, tokens: Tensor | Where | dict[str, Tensor] | None
    ) -> tuple[Image, dict[str, Image], dict[str, Met], dict[str, list[Overlay]]]:
        """The unedited picture, the edited ones, what each edit met, and with ``--show-where`` its steps."""
        from tide.editing import draw_edits, overlays

        met: dict[str, Met] = {}
        steps: dict[str, list[Overlay]] = {}

        @contextmanager
        def shown(name: str, met: Met) -> Iterator[None]:
            with overlays(adapter, met, size=self.size) as steps[name]:
                yield

        before, after = draw_edits(
            adapter,
            model,
            self.prompt,
            edits,
            **self.sampling,
            steps=self.steps,
            tokens=tokens,
            branch=self.branch,
            renormalise=self.renormalise,
            on_met=met.__setitem__,
            around=shown if self.drawn_mask.show_where else None,
        )
        return before, after, met, steps
