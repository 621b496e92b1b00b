"""The bars: every claim about the bundled pipeline and a checkpoint of it, measured on held-out prompts.

Latents, signs and thresholds are chosen on training scenes, step ranges and strengths of edits on development prompts,
nothing on the test split. All figures are of the test split, with 95 % Wilson intervals where they are shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tide.errors import TideError
from tide.evaluation.statistics import wilson_interval
from tide.provenance import machine_in_words, versions
from tide.sae.model import TIDE
from tide.scenes.annotate import generate_images
from tide.scenes.scene import ATTRIBUTES, prompts
from tide.studies import measurements
from tide.studies.bench import Bench, DataSizes
from tide.studies.edit_study import EditStudy, say_chosen
from tide.studies.edit_study import Sizes as EditSizes
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.methods import METHODS, RIVALS
from tide.studies.models import Checkpoint
from tide.studies.options import Options, write_results
from tide.studies.report import write_report
from tide.studies.trial import PROMPT

#: Edits of latents and the edits of raw activations that know the same.
EDITS = ("contrast", "steer contrast", "steer bounded", "towards", "steer towards", "swap", "steer")


EDIT_SIZES = EditSizes(20, 100, 0, ((0.0, 1.0), (0.3, 1.0), (0.0, 0.8)), 4, 384, 192, 1)


@dataclass(frozen=True)
class Sizes(measurements.Sizes):
    agreement_images: int
    edits: EditSizes


DEFAULT = Sizes(1024, 512, 200, 10, 420, 10, 500, EDIT_SIZES)
FAST = Sizes(96, 64, 4, 2, 48, 2, 20, EditSizes(2, 2, 0, ((0.0, 1.0),), 2, 32, 16, 1))


@dataclass
class Bars:
    """Measures all but the edits, in a cell each, with the pipeline, the judge and the checkpoint of the edits."""

    edits: EditStudy
    model: TIDE
    sizes: Sizes

    @property
    def bench(self) -> Bench:
        return self.edits.bench

    def cells(self) -> list[Cell]:
        sizes = self.sizes
        of_model = self.edits.models.described(self.bench.seed)

        def cell(name: str, run: Callable[[], Result], study: dict[str, Any], seconds: float, **more: Any) -> Cell:
            return Cell(name, {"data": self.bench.config(), "study": study, **more}, run, lambda: seconds)

        agreement = {"images": sizes.agreement_images, "judge": self.edits.judged_by}
        losses = {"prompts": sizes.loss_prompts, "timesteps": sizes.loss_timesteps}
        concepts = {"images": sizes.concept_images, "timesteps": sizes.concept_timesteps}
        return [
            cell("agreement", self.agreement, agreement, 0.15 * sizes.agreement_images),
            cell("reconstruction", self.reconstruction, losses, 0.5 * sizes.loss_prompts, **of_model),
            cell("concepts", self.concepts, concepts, 0.2 * sizes.concept_images, **of_model),
        ]

    def agreement(self) -> Result:
        """How often the judge agrees with the held-out prompt that an image was generated from, for each attribute."""
        n, seed = self.sizes.agreement_images, self.bench.seed + 5
        pairs = prompts("test", n, seed)
        hits: dict[str, int] = dict.fromkeys((*ATTRIBUTES, "valid", "all"), 0)
        for start in range(0, n, 50):
            part = pairs[start : start + 50]
            seeds = range(seed + start, seed + start + len(part))
            verdicts = self.edits.judge.read(generate_images(self.bench.adapter, [c for _, c in part], list(seeds)))
            for verdict, (scene, _) in zip(verdicts, part, strict=True):
                agreed = [verdict.agrees(scene, attribute) for attribute in ATTRIBUTES]
                for attribute, hit in zip(ATTRIBUTES, agreed, strict=True):
                    hits[attribute] += hit
                hits["valid"] += verdict.valid
                hits["all"] += all(agreed)
        shares = {name: {"share": count / n, "interval": wilson_interval(count, n)} for name, count in hits.items()}
        return {**shares, "images": n}

    def reconstruction(self) -> Result:
        return measurements.reconstruction(self.bench, {"tide": self.model}, self.sizes)

    def concepts(self) -> Result:
        sizes = self.sizes
        found = measurements.concepts(self.bench, self.model, sizes.concept_images, sizes.concept_timesteps)
        return {"concepts": found.concepts, "levels": found.levels}


def reproduce(options: Options) -> str:
    """Measures the checkpoint ``options.sae`` and returns a line for each bar: what was asked, what was reached.

    Writes ``bars.json`` and ``report.html`` into ``options.out``, where finished cells are kept. Raises
    :class:`~tide.errors.TideError` without a checkpoint, or for one of another pipeline or without a block.
    """
    if options.sae is None:
        raise TideError("the bars measure a checkpoint; give its folder with --sae")
    sizes = FAST if options.fast else DEFAULT
    n_edits = options.edit_prompts or sizes.edits.test
    sizes = replace(sizes, loss_prompts=options.prompts or sizes.loss_prompts, edits=replace(sizes.edits, test=n_edits))
    data = DataSizes(sizes.train_images, sizes.held_out_images, token_fraction=0.5)
    bench = Bench(data, options.seed, options.say, progress=options.progress)
    family, d_model = bench.adapter.family, bench.adapter.d_model
    model = TIDE.from_pretrained(options.sae, backend=options.backend, family=family, d_model=d_model)
    bench.at = model.config.trained_block
    study = EditStudy(bench, Checkpoint(model), sizes.edits, EDITS)
    found = run_cells(Bars(study, model, sizes).cells(), options.out, options.say)
    seeds = options.each_seed(sizes.edits.seeds)
    edits = study.run(seeds, options.out, options.say)
    metrics: dict[str, Any] = {
        "checkpoint": str(options.sae),
        **study.models.described(options.seed),
        "seeds": seeds,
        "data": bench.config(),
        "agreement": found["agreement"],
        **found["reconstruction"],
        **found["concepts"],
        **edits.summary(),
        "tried": edits.tried(),
    }
    say_chosen(metrics["chosen"], options.say)
    verdict = "\n".join(verdicts(metrics))
    write_results(options, "bars", {**metrics, "verdict": verdict})
    config = {"seed": options.seed, "fast": options.fast, "sizes": {**vars(sizes), "edits": vars(sizes.edits)}}
    shown = {
        "headline": f"{options.sae} on the bundled pipeline",
        "sizes": measurements.sizes_of(bench.adapter, model, bench.block),
        **metrics,
        "trade_off": {**metrics["curves"], PROMPT: metrics["chosen"][PROMPT]},
        "verdicts": verdict.splitlines(),
        "config": config,
        "versions": versions(),
        "machine": machine_in_words(),
    }
    write_report(options.out / "report.html", shown, heat_maps=[], strips=[], histories={})
    return verdict


def verdicts(metrics: dict[str, Any]) -> list[str]:
    """A line for each bar: what was asked, what was reached."""
    loss = metrics["diffusion_loss"]
    recovered = loss["recovered"]
    share = "is not defined, since zeroing the block does no harm" if recovered is None else f"{recovered:.4f}"
    tide, smaller, full = (metrics["models"][name] for name in ("tide", "pca_k/4", "pca_k"))
    asked = {"class": 0.90, "colour": 0.90, "depth": 0.85, "shadow": 0.85}
    reached = {attribute: metrics["agreement"][attribute]["share"] for attribute in asked}
    lines = [
        _bar(
            reached[a] >= share,
            f"generated images agree with their prompt on {a}: {reached[a]:.1%} (asked {share:.0%})",
        )
        for a, share in asked.items()
    ]
    lines += [
        _bar(
            recovered is not None and recovered >= 0.99,
            f"diffusion loss recovered: {share} (asked 0.99), ratio {loss['ratio']:.4f}",
        ),
        _bar(
            tide["explained_variance"] > smaller["explained_variance"],
            f"explained variance {tide['explained_variance']:.4f}, PCA of rank k/4 "
            f"{smaller['explained_variance']:.4f}, of rank k {full['explained_variance']:.4f}",
        ),
    ]
    lines += [
        _bar(
            row["auroc"] >= 0.85 and row["auroc"] > row["neuron_auroc"],
            f"AUROC of the best latent, level {level}: {row['auroc']:.3f} (asked 0.85), "
            f"best neuron {row['neuron_auroc']:.3f}",
        )
        for level, row in metrics["levels"].items()
    ]
    ceiling = metrics["chosen"][PROMPT]
    return [
        *lines,
        *edit_verdicts(metrics["equal_preservation"], metrics["chosen"]),
        f"ceiling  prompt replacement: changed {ceiling['success']:.1%}, kept {ceiling['preserved']:.1%}",
    ]


def _bar(met: bool, text: str) -> str:
    return f"{'met   ' if met else 'MISSED'}  {text}"


def edit_verdicts(levels: dict[str, dict[str, Any]], chosen: dict[str, dict[str, Any]]) -> list[str]:
    """Every method of latents beside raw activations that know the same, at every level of preservation and at the
    strengths chosen on development prompts."""

    def shares(row: dict[str, Any]) -> str:
        return f"{row['success']:.1%} changed, {row['preserved']:.1%} kept, {row['both']:.1%} both"

    lines = []
    for ours, theirs in [(name, other) for name in RIVALS for other in RIVALS[name] if other in chosen]:
        ahead = sum(row[ours]["success"] > row[theirs]["success"] for row in levels.values())
        behind = sum(row[ours]["success"] < row[theirs]["success"] for row in levels.values())
        lines.append(
            _bar(
                ahead > 0 and behind == 0,
                f"{METHODS[ours].label} above {METHODS[theirs].label} at equal preservation: ahead at {ahead} of "
                f"{len(levels)} levels, behind at {behind}; at the strengths chosen {shares(chosen[ours])} against "
                f"{shares(chosen[theirs])}",
            )
        )
    point = chosen["contrast"]
    strengths = ", ".join(f"{factor:g}" for factor in point["factor"])
    lines.append(
        _bar(
            point["success"] >= 0.8 and point["preserved"] >= 0.8,
            f"80 % changed with 80 % kept: contrast of latents at the strength chosen on development prompts "
            f"({strengths}) changes {point['success']:.1%} and keeps {point['preserved']:.1%}",
        )
    )
    return lines
