"""``tide edit --search``: the edit at other steps, branches, strengths and blocks, as a table and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tide.messages import counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from tide.adapters import Adapter
    from tide.cli.edit_options import EditOptions
    from tide.cli.edit_scores import Scorers
    from tide.editing import Edit
    from tide.evaluation.edit_ruler import EditTrial
    from tide.evaluation.edit_search import Search, Tried
    from tide.sae import TIDE

#: Seeds of the prompt, where no others are given.
SEEDS = 3
#: Settings that search.png shows.
SHOWN = 12
#: Pixels of the longer side of a picture in it.
SIDE = 192
WHAT = {
    "damage": "the model's loss on the picture over that on the picture without the edit, or on the target's under its "
    "prompt if that is lower; 1 is as good",
}
TOWARDS = {
    **WHAT,
    "effect": "share of the way from the picture without the edit to the target's, in final latents; 1 is there",
    "score": "min(effect, 1) less 0.1 for each doubling of the damage",
}
ALONE = {
    **WHAT,
    "effect": "how far the picture moves, in final latents, of their norm; not whether as wanted",
    "score": "the effect, where the damage is below 2; else minus the damage",
}


@dataclass(frozen=True)
class Searching:
    """A search that ``asked`` describes; ``model`` is the checkpoint of ``--sae``."""

    asked: EditOptions
    adapter: Adapter
    pipeline: str
    model: TIDE
    scorers: Scorers

    def run(self) -> None:
        """Says what it costs, searches, writes search.json and search.png, and says what to try."""
        from tqdm import tqdm

        from tide.editing import read_mask
        from tide.evaluation import search_edits
        from tide.evaluation.edit_search import n_runs, settings

        asked = self.asked
        trials, models = self._trials(), self._models()
        run: dict[str, Any] = {"n_steps": asked.steps_drawn, "guidance_scale": asked.guidance}
        n_settings = len(settings(list(models), list(asked.settings), **run))
        total = n_runs(n_settings, trials)
        recorded = len(trials) * len(models) if asked.target_prompt and asked.towards_image is None else 0
        targets = f", and {recorded} to record targets" if recorded else ""
        drawn = f"{counted(total, 'run')} of {counted(asked.steps_drawn, 'step')}{targets}"
        searched = f"{counted(n_settings, 'setting')} on {counted(len(trials), 'trial')}"
        print(f"Searching {searched}: {drawn}.", flush=True)
        mask = None if asked.mask is None else read_mask(asked.mask, self.adapter, asked.size)
        with tqdm(total=total, unit="run", disable=None) as bar:
            found = search_edits(
                self.adapter,
                models,
                trials,
                self._edits,
                **run,
                size=asked.size,
                tokens=mask,
                renormalise=asked.renormalise,
                on_run=bar.update,
            )
        scores = self._scores(found)
        rows = [self._row(i, each, scores) for i, each in enumerate(found.tried)]
        self._write(found, rows)
        print(self._table(rows))
        print(f"{self._advice(found, rows)} See {Path(asked.out) / 'search.png'}.")

    def _trials(self) -> list[EditTrial]:
        from tide.activations.source import read_prompts
        from tide.editing import changed_prompt
        from tide.evaluation import EditTrial

        asked, target = self.asked, self.asked.target_prompt
        if asked.search_prompts is None:
            return [EditTrial(asked.prompt, asked.seed + i, target) for i in range(SEEDS)]
        prompts = [asked.prompt, *read_prompts(Path(asked.search_prompts))]
        change = asked.change
        each_once = dict.fromkeys(prompts)
        return [EditTrial(each, asked.seed, change and changed_prompt(each, *change)) for each in each_once]

    def _models(self) -> dict[str, TIDE]:
        from tide.cli.common import sae_of

        others = [replace(self.asked.autoencoder, sae=folder, block=None) for folder in self.asked.search_sae or ()]
        found = {each.sae: sae_of(each, self.adapter, self.pipeline) for each in others}
        return {self.asked.autoencoder.sae: self.model, **found}

    def _edits(self, model: TIDE, trial: EditTrial) -> dict[str, Edit]:
        from tide.cli.edit_target import edits_of
        from tide.editing import Edit

        asked = replace(self.asked, prompt=trial.prompt, seed=trial.seed)
        # Those of raw activations are --what's, which no search takes.
        found, _ = edits_of(asked, self.adapter, model)
        return {name: each for name, each in found.items() if isinstance(each, Edit)}

    def _row(self, i: int, each: Tried, scores: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """A setting for search.json, with the mean of its pictures' ``scores`` by CLIP and LPIPS."""
        mine = [rows[i] for rows in scores]
        clip = {"clip": _mean([list(row["clip"].values())[-1] for row in mine])} if "clip" in mine[0] else {}
        lpips = {"lpips": _mean([row["lpips"] for row in mine])} if "lpips" in mine[0] else {}
        nothing = [met.nothing for met in each.met if met.nothing is not None]
        return {
            "sae": each.setting.model,
            "steps": each.setting.steps,
            "branch": each.setting.branch,
            **self.asked.settings[each.setting.edit],
            **{name: getattr(each, name) for name in ("effect", "damage", "score", "effects", "damages")},
            **clip,
            **lpips,
            **({"nothing_changed": nothing[0]} if nothing else {}),
        }

    def _scores(self, found: Search) -> list[list[dict[str, Any]]]:
        """For each trial, what CLIP and LPIPS say of its picture at every setting; CLIP's last text is the target."""
        rows = []
        for i, (trial, before) in enumerate(zip(found.trials, found.before, strict=True)):
            texts = {"prompt": trial.prompt, **({} if trial.target is None else {"towards": trial.target})}
            scorers = self.scorers._replace(texts=texts)
            rows.append(scorers.score(before, [each.pictures[i] for each in found.tried]).rows)
        return rows

    def _write(self, found: Search, rows: list[dict[str, Any]]) -> None:
        """Writes search.json and search.png or neither, then run.json."""
        from tide.cli.common import about, writing
        from tide.files import json_writer, replace_files
        from tide.pictures import image_writer
        from tide.runs import FileKind, write_run

        asked, out = self.asked, Path(self.asked.out)
        what = TOWARDS if found.wanted else ALONE
        report = {"what": what, "trials": [trial._asdict() for trial in found.trials], "settings": rows}
        files: dict[str, FileKind] = {"search.json": "figures", "search.png": "picture"}
        holds = about(
            "edit",
            self.adapter,
            self.pipeline,
            self.model,
            asked.autoencoder,
            data=asked.texts,
            configuration={**asked.sampling, "strength": asked.strengths},
            measured={"best": rows[0]},
            files=files,
        )
        with writing(out):
            picture = image_writer(sheet(found, list(map(self._in_words, rows))))
            replace_files({out / "search.json": json_writer(report), out / "search.png": picture})
            write_run(out, holds, asked.made_by())

    def _in_words(self, row: dict[str, Any]) -> str:
        """A setting as options: those of the search that differ from one setting to another."""
        first, last = row["steps"]
        sae = f" --sae {row['sae']}" if self.asked.search_sae else ""
        strength = f" --strength {row['strength']:g}" if len(self.asked.strengths) > 1 else ""
        return f"--steps {first:g} {last:g} --branch {row['branch']}{strength}{sae}"

    def _table(self, rows: list[dict[str, Any]]) -> str:
        from tide.tables import text_table

        measures = [name for name in ("effect", "damage", "score", "clip", "lpips") if name in rows[0]]
        cells = [[self._in_words(row), *(_number(row[name]) for name in measures)] for row in rows]
        return text_table(["setting", *measures], cells)

    def _advice(self, found: Search, rows: list[dict[str, Any]]) -> str:
        """What to try, or why nothing can be recommended."""
        from tide.evaluation.edit_search import BREAKS, LEAST_EFFECT

        best = found.best
        said = f"{self._in_words(rows[0])} (effect {_number(best.effect)}, damage {_number(best.damage)})"
        met = [each for tried in found.tried for each in tried.met]
        if all(each.nothing is not None for each in met):
            return f"No setting changes anything: {met[0].nothing}{met[0].candidates}."
        if not found.wanted:
            return self._of_a_change(best, said)
        if math.isnan(best.effect):
            return f"The effect cannot be measured: every target's picture is the unedited one. Least damage: {said}."
        if best.effect < LEAST_EFFECT:
            return (
                f"No setting takes the picture half of the way; raise --strength, or try another block. Best: {said}."
            )
        if best.damage >= BREAKS:
            return f"Every setting that works may break the picture; lower --strength, or train longer. Best: {said}."
        return f"Try {said}{self._compared(found)}."

    def _of_a_change(self, best: Tried, said: str) -> str:
        """The same where no target says what is wanted."""
        from tide.evaluation.edit_search import WHOLE

        if best.damage >= WHOLE:
            return f"Every setting may break the picture; lower the factor or --strength. Least damage: {said}."
        return (
            f"Try {said}: the most change that keeps the picture whole. Whether it is the change that you want, you "
            "must see yourself; give --towards or --change to measure that."
        )

    def _compared(self, found: Search) -> str:
        """The best setting beside the default of the same checkpoint and strength."""
        best = found.best.setting
        usual = best._replace(steps=(0.0, 1.0), branch="conditional")
        if usual == best:
            return ", the default"
        each = next(each for each in found.tried if each.setting == usual)
        return (
            f"; all steps of the conditional branch have effect {_number(each.effect)}, damage {_number(each.damage)}"
        )


def sheet(found: Search, words: list[str]) -> Image:
    """A row for each trial: its picture without an edit, that of its target, and those of the best settings."""
    from tide.strips import Row, labelled

    named = ["before", *(["target"] if found.wanted else [])]
    for place, (each, setting) in enumerate(zip(found.tried[:SHOWN], words, strict=False), 1):
        named.append(f"{place}. {setting}: effect {_number(each.effect)}, damage {_number(each.damage)}")
    rows = []
    for i, trial in enumerate(found.trials):
        shown = [found.before[i], *found.wanted[i : i + 1], *(each.pictures[i] for each in found.tried[:SHOWN])]
        target = "" if trial.target is None else f" → {trial.target}"
        rows.append(Row(shown, named, f"{trial.prompt}{target} (seed {trial.seed})"))
    return labelled(rows, side=SIDE)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:z.2f}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
