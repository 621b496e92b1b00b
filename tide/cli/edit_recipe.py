"""``tide edit --recipe``: the changes that a file lists, all in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tide.cli.edit_files import mean_change, write_pictures
from tide.cli.edit_met import as_row, remarks
from tide.messages import counted

if TYPE_CHECKING:
    from tide.adapters import Adapter
    from tide.cli.edit_options import EditOptions
    from tide.cli.edit_scores import Scorers
    from tide.editing import Change, Recipe
    from tide.editing.met import Met
    from tide.sae import TIDE

#: The edited picture is after-recipe.png.
NAME = "recipe"
#: Latents that a line names.
LISTED = 8


@dataclass(frozen=True)
class FromRecipe:
    """A recipe that ``asked`` names, whose prompt is the recipe's; ``model`` is the checkpoint of ``--sae``."""

    asked: EditOptions
    recipe: Recipe
    adapter: Adapter
    pipeline: str
    model: TIDE
    scorers: Scorers

    def run(self) -> None:
        """Draws, writes and says what came of it."""
        from tide.cli.common import about
        from tide.editing import draw_recipe

        asked, recipe, model, out = self.asked, self.recipe, self.model, Path(self.asked.out)
        met: list[tuple[tuple[Change, ...], Met]] = []
        before, after = draw_recipe(self.adapter, model, recipe, on_met=lambda *each: met.append(each))
        assert before is not None
        scores, moved = self.scorers.score(before, [after]), mean_change(before, after)
        groups = [{"latents": _latents(group), **as_row(found)} for group, found in met]
        rows: list[dict[str, Any]] = [{"mean_pixel_change": moved, "groups": groups, **scores.rows[0]}]
        found: dict[str, Any] = {"data": asked.texts, "measured": {"edits": rows}}
        found["configuration"] = recipe.to_dict()
        holds = about("edit", self.adapter, self.pipeline, model, asked.autoencoder, **found)
        sae = {"block": model.config.block, "n_latents": model.n_latents, "k": model.config.k}
        report = {"edits": rows, **scores.report, "sae": sae, "recipe": recipe.to_dict()}
        made_by = asked.made_by(seed=recipe.seed)
        write_pictures(out, before, {NAME: after}, [NAME], recipe.prompt, report, holds, made_by)
        for group, each in met:
            for line in remarks({f"by changing {_in_words(group)}": each}):
                print(line)
        print(
            f"Edited block {model.config.block} by {counted(len(recipe.changes), 'change')}: pixels moved by "
            f"{moved:.1f} (mean, of 255){scores.line}; see {out / 'strip.png'}."
        )


def _latents(group: tuple[Change, ...]) -> list[int]:
    return list(dict.fromkeys(latent for change in group for latent in change.latents))


def _in_words(group: tuple[Change, ...]) -> str:
    latents = _latents(group)
    more = f" and {len(latents) - LISTED} more" if len(latents) > LISTED else ""
    return f"latent{'s' * (len(latents) > 1)} {', '.join(map(str, latents[:LISTED]))}{more}"
