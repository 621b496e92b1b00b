"""``tide effect``: which latents, at which steps, move what is drawn towards another prompt."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from tide.cli.drawing import Drawing, Prompt
from tide.cli.usage import Aspect, fast_beside
from tide.cli.values import Count, MaybeReplacement
from tide.errors import TideError

if TYPE_CHECKING:
    from tide.interpretation.effect import Effects
    from tide.runs import Contents

_TARGET = tyro.conf.create_mutex_group(required=True, title="target (one of)")
#: Latents of the command line for ``tide edit`` that is printed.
ERASED = 16


@dataclass(frozen=True, kw_only=True)
class Effect(Drawing):
    """Find the latents that move a prompt towards another one, by their effect.

    At every step of the prompt's sampling run, the effect of removing each latent is estimated from a gradient, and
    that of the strongest is measured: the share of the way from the model's prediction to its prediction under the
    other prompt.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (fast_beside("n_steps"),)

    towards: Annotated[Prompt, _TARGET] = None
    """the other prompt"""
    change: Annotated[MaybeReplacement, _TARGET] = None
    """this prompt with a word replaced, such as red=blue"""
    top: Count = 32
    """latents to list and to measure one by one, of the largest estimated effect"""
    points: Count = 5
    """gradients of the estimate along a path (integrated gradients)"""
    batch_size: Count = 16
    """images per pass"""

    def run(self) -> None:
        from tide.cli.common import about, adapter_of, output_folder, pipeline_of, sae_of
        from tide.interpretation.effect import effect_curves, latent_effects, steps_of_run, towards_prompt
        from tide.interpretation.effect.curves import COUNTS

        texts, pipeline = self.texts, pipeline_of(self.model, self.autoencoder)
        with output_folder(Path(self.out)):
            adapter = adapter_of(self.model, pipeline, sae=self.autoencoder.sae)
            adapter.check_steps(self.steps_drawn)
            model = sae_of(self.autoencoder, adapter, pipeline)
            asked = steps_of_run(adapter, self.prompt, **self.sampling)
            metric = towards_prompt(adapter, [texts["towards"]])
            effects = latent_effects(
                adapter, model, asked, metric, points=self.points, ablate=self.top, batch_size=self.batch_size
            )
            if effects.ablation is None:
                raise TideError(
                    f"no latent of block {model.config.block} has an effect on {self.prompt!r}; take an SAE whose "
                    "latents are active on it, or more steps"
                )
            curves = effect_curves(adapter, model, asked, metric, effects, COUNTS, batch_size=self.batch_size)
            options = {"data": texts, "configuration": self.sampling}
            holds = about("effect", adapter, pipeline, model, self.autoencoder, **options)
            report = _report(effects, list(COUNTS), curves)
            self._write(effects, model, report, holds)
        removed = ", ".join(f"{curves[by][COUNTS.index(ERASED)]:.0%} by {by}" for by in curves)
        print(
            f"Without up to {ERASED} of the {model.n_latents} latents of block {model.config.block}, the model's "
            f"predictions go this share of the way to {texts['towards']!r}: {removed}. Estimated and measured effects "
            f"correlate by {report['correlation']['attribution']:.2f}; see {Path(self.out) / 'effects.png'}."
        )
        if chosen := effects.strongest(ERASED):
            print(self._edit(chosen))

    def _edit(self, features: list[int]) -> str:
        """The command that draws the prompt without these latents."""
        words = ["tide", "edit", "--sae", self.autoencoder.sae, "--prompt", self.prompt]
        if self.model.pipeline is not None:
            words += ["--pipeline", self.model.pipeline]
        if self.model.adapter is not None:
            words += ["--adapter", self.model.adapter]
        for name in ("device", "dtype"):
            if (value := getattr(self.model, name)) is not None:
                words += [f"--{name}", value]
        words += [
            f"--{name.replace('_', '-')}" for name in ("offload", "trust_remote_code") if getattr(self.model, name)
        ]
        if self.autoencoder.backend != "auto":
            words += ["--backend", self.autoencoder.backend]
        if self.size is not None:
            words += ["--size", "x".join(map(str, self.size))]
        words += ["--n-steps", str(self.steps_drawn), "--guidance", f"{self.guidance:g}", "--seed", str(self.seed)]
        words += ["--erase", ",".join(map(str, features)), "--out", f"{Path(self.out)}-edit"]
        return shlex.join(words)

    def _write(self, effects: Effects, model: Any, report: dict[str, Any], holds: Contents) -> None:
        """Writes the tables, the figures and the chart or none of them, then run.json."""
        from tide.cli.common import writing
        from tide.files import json_writer, replace_files
        from tide.interpretation.effect.effects_chart import draw_effects
        from tide.interpretation.effect.effects_file import effects_writer
        from tide.runs import FileKind, write_run

        out, metric = Path(self.out), f"share of the way to {self.target_prompt!r}"
        files: dict[str, FileKind] = {"effects.safetensors": "table", "effects.json": "figures", "effects.png": "chart"}
        curves = dict(report["curves"])
        counts = curves.pop("latents")
        with writing(out):
            replace_files(
                {
                    out / "effects.safetensors": effects_writer(effects, model),
                    out / "effects.json": json_writer(report),
                    out / "effects.png": lambda path: draw_effects(path, effects, counts, curves, metric=metric),
                }
            )
            measured = {"correlation": report["correlation"], "curves": report["curves"]}
            write_run(out, replace(holds, measured=measured, files=files), self.made_by())


def _report(effects: Effects, counts: list[int], curves: dict[str, list[float]]) -> dict[str, Any]:
    """effects.json: means over the steps of each latent that was measured, and the step at which it does most."""
    assert effects.ablated is not None
    assert effects.ablation is not None
    rows = []
    for i, feature in enumerate(effects.ablated.tolist()):
        row = {"latent": feature, "ablation": float(effects.ablation[:, i].mean())}
        for by in ("attribution", "integrated", "activation"):
            row[by] = float(effects.values(by)[feature])
        rows.append({**row, "timestep": float(effects.timesteps[effects.ablation[:, i].abs().argmax()])})
    return {
        "correlation": {by: effects.correlation(by) for by in ("attribution", "integrated", "activation")},
        "curves": {"latents": counts, **curves},
        "latents": rows,
    }
