"""Fig. 1: concepts of the paper's three levels and of the scenes' other attributes, in latents and in raw neurons.

For each concept (section 5.4) the latents of all images that show it are pooled; tokens of held-out images are scored
by their similarity with the pooled latents, and the most similar ones are kept. Beyond the paper, with the renderer's
masks as the truth: AUROC and IoU of that score, and of the single latent and the single raw neuron that fit the concept
best on training scenes, over all tokens and among the objects' own; and the monosemanticity score of every latent and
neuron over held-out images, by the embeddings of the judge. The atlas shows all latents of the first seed's model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tide import charts
from tide.interpretation.atlas import Atlas, label_latents
from tide.interpretation.atlas_page import write_atlas
from tide.interpretation.concepts import Annotated, concept_scores, mean_latents, pooled_latents
from tide.interpretation.gathered import build_atlas
from tide.interpretation.monosemanticity import Monosemanticity
from tide.interpretation.timesteps import concept_timesteps, spread_timesteps
from tide.pictures import TILE, heat_overlay, resized, to_uint8
from tide.sae.model import TIDE
from tide.scenes.annotate import annotated_scenes, images_of
from tide.scenes.scene import CONCEPTS, LEVEL_OF, Scene, scenes
from tide.studies.grid import Result
from tide.studies.mask_concepts import measure_concepts
from tide.studies.models import Models, SeedStudy
from tide.studies.options import Options, write_results
from tide.tables import mean, spread, text_table, with_spread, write_csv

#: Concepts in the picture: those of the paper's three levels, then one of each other attribute.
SHOWN = ("near", "far", "shadow", "house", "tree", "door", "roof", "red", "snow", "ornate", "old", "left")
#: How many held-out images of each concept it shows.
SHOWN_IMAGES = 3
#: Added to a seed, they give the seeds of its scenes.
SELECTION, HELD_OUT = 7000, 8000
#: How many of each image's tokens the picture marks as the most similar ones.
MARKED = 8

FIGURES = {
    "auroc": "best latent",
    "neuron_auroc": "best raw neuron",
    "recipe_auroc": "pooled latents",
    "recipe_literal_auroc": "pooled, as written",
    "within_auroc": "latent, within objects",
    "within_neuron_auroc": "neuron, within objects",
    "iou": "IoU, latent",
    "neuron_iou": "IoU, neuron",
    "recipe_precision": "top tokens in the mask",
}


@dataclass(frozen=True)
class Sizes:
    images: int
    timesteps: int
    atlas_images: int
    seeds: int


DEFAULT = Sizes(images=480, timesteps=10, atlas_images=512, seeds=3)
FAST = Sizes(images=64, timesteps=2, atlas_images=32, seeds=1)


@dataclass
class ConceptStudy(SeedStudy):
    """What the cells of all seeds share: latents are chosen on ``selection`` and measured on ``held_out``. Each seed
    has its own scenes, and none of them was used to choose how autoencoders are trained."""

    sizes: Sizes

    @property
    def timesteps(self) -> torch.Tensor:
        return concept_timesteps(self.bench.adapter, self.sizes.timesteps)

    def selection(self, seed: int) -> list[Scene]:
        return list(scenes("train", self.sizes.images, SELECTION + seed))

    def held_out(self, seed: int) -> list[Scene]:
        return list(scenes("test", self.sizes.images, HELD_OUT + seed))

    def seconds(self, seed: int) -> float:
        return self.models.seconds(seed) + 90 * self.sizes.images / DEFAULT.images

    def measure(self, seed: int) -> Result:
        model = self.models.of(seed)
        found = measure_concepts(
            self.bench.adapter, model, self.selection(seed), self.held_out(seed), self.timesteps, seed=seed
        )
        concentration = self._monosemanticity(model, seed)
        return {"concepts": found.concepts, "levels": found.levels, "monosemanticity": concentration}

    def annotated(self, seed: int) -> Annotated:
        """The held-out scenes with different noise than :meth:`measure` saw."""
        bench = self.bench
        found = annotated_scenes(bench.adapter, self.held_out(seed), [bench.block], self.timesteps, seed=seed + 2)
        return found[bench.block]

    def _monosemanticity(self, model: TIDE, seed: int) -> dict[str, Any]:
        """The score's mean and quantiles over the latents that fire, and over neurons."""
        data, embeddings = self.annotated(seed), self.judge.embed_images(images_of(self.held_out(seed)))
        shape = (len(embeddings), data.n_tokens, -1)
        features = {"latents": mean_latents(model, data).view(shape).mean(1), "neurons": data.x.mean((0, 2))}
        found: dict[str, Any] = {}
        for name, pooled in features.items():
            running = Monosemanticity(pooled.shape[1], embeddings.shape[1])
            running.update(pooled, embeddings)
            scores = running.scores()
            known = scores[~scores.isnan()]
            found[name] = {
                "mean": float(known.mean()),
                "quantiles": known.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist(),
                "features": len(known),
            }
        return found

    # -- pictures -----------------------------------------------------------------------------------------

    def tiles(self, seed: int, table: dict[str, dict[str, Any]]) -> dict[str, list[list[np.ndarray]]]:
        """Concept -> for each of :data:`SHOWN_IMAGES` images: the image, the pooled latents' score with the most
        similar tokens marked, and the best latent; all heat of a concept is on one scale."""
        model, chosen = self.models.of(seed), [c for c in SHOWN if c in table]
        bench, held_out = self.bench, self.held_out(seed)
        first = annotated_scenes(bench.adapter, self.selection(seed), [bench.block], self.timesteps, seed=seed)[
            bench.block
        ]
        second = self.annotated(seed)
        z_first, z_second = mean_latents(model, first), mean_latents(model, second)
        background = pooled_latents(z_first, torch.ones(len(first.x[0]), dtype=torch.bool), first.n_tokens)
        side = round(second.n_tokens**0.5)
        out: dict[str, list[list[np.ndarray]]] = {}
        for concept in chosen:
            pooled = pooled_latents(z_first, first.labels[concept], first.n_tokens)
            score = concept_scores(z_second, pooled, background).clamp(min=0).view(-1, side, side)
            latent = z_second[:, table[concept]["latent"]].view(-1, side, side)
            shows = second.labels[concept].nonzero().flatten().tolist()
            ranked = sorted(shows, key=lambda i: -float(score[i].max()))
            stride = max(1, len(ranked) // SHOWN_IMAGES)
            picked = ranked[stride // 2 :: stride][:SHOWN_IMAGES]
            tops = [float(m[picked].max()) for m in (score, latent)]
            out[concept] = [
                [
                    image := resized(to_uint8(images_of([held_out[i]])[0]), (TILE, TILE)),
                    marked(heat_overlay(image, score[i].numpy(), tops[0]), score[i]),
                    heat_overlay(image, latent[i].numpy(), tops[1]),
                ]
                for i in picked
            ]
        return out

    def atlas(self, seed: int) -> tuple[Atlas, list[np.ndarray]]:
        """All latents of one seed's model, over further held-out scenes and the whole sampling run."""
        bench, model = self.bench, self.models.of(seed)
        items = list(scenes("test", self.sizes.atlas_images, bench.seed + 9))
        timesteps = spread_timesteps(bench.adapter, self.sizes.timesteps)
        data = annotated_scenes(bench.adapter, items, [bench.block], timesteps, seed=bench.seed)[bench.block]
        running = Monosemanticity(model.n_latents, self.judge.embed_images(images_of(items[:1])).shape[1])
        side = round(data.n_tokens**0.5)
        made = build_atlas(model, timesteps, [(data.x, None)], (side, side))
        z = mean_latents(model, data)
        pooled = z.view(len(items), data.n_tokens, -1).mean(1)
        running.update(pooled, self.judge.embed_images(images_of(items)))
        labels = label_latents(z, {c: m.flatten() for c, m in data.masks.items()}, LEVEL_OF)
        made = replace(made, labels=labels, monosemanticity=running.scores())
        return made, [to_uint8(image) for image in images_of(items)]


def marked(image: np.ndarray, score: torch.Tensor) -> np.ndarray:
    """``image`` with a white frame around the :data:`MARKED` highest tokens of ``score [h, w]`` that are above zero."""
    framed, (rows, columns) = image.copy(), score.shape
    high, wide = image.shape[0] // rows, image.shape[1] // columns
    line = max(1, high // 8)
    highest = score.flatten().topk(min(MARKED, score.numel()))
    for at in highest.indices[highest.values > 0].tolist():
        y, x = (at // columns) * high, (at % columns) * wide
        inside = framed[y + line : y + high - line, x + line : x + wide - line].copy()
        framed[y : y + high, x : x + wide] = 255
        framed[y + line : y + high - line, x + line : x + wide - line] = inside
    return framed


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    sizes = FAST if options.fast else DEFAULT
    seeds = options.each_seed(sizes.seeds)
    study = ConceptStudy(Models.of_study(options), sizes)
    return _report(options, study, study.run(seeds, options), seeds)


# -- results ----------------------------------------------------------------------------------------------


def over_concepts(results: list[Result], figure: str) -> list[float]:
    """For each seed the mean over all concepts that have the figure."""
    return [mean([row[figure] for row in r["concepts"].values() if figure in row]) for r in results]


def verdict_of(results: list[Result]) -> str:
    """One sentence from the numbers."""
    latent, neuron = over_concepts(results, "auroc"), over_concepts(results, "neuron_auroc")
    within = [over_concepts(results, name) for name in ("within_auroc", "within_neuron_auroc")]
    won = sum(a > b for a, b in zip(latent, neuron, strict=True))
    levels = {
        level: [mean([r["levels"][level][name] for r in results]) for name in ("auroc", "neuron_auroc")]
        for level in results[0]["levels"]
    }
    ahead = [level for level, (a, b) in levels.items() if a > b]
    scores = [mean([r["monosemanticity"][name]["mean"] for r in results]) for name in ("latents", "neurons")]
    return (
        f"Over {len(results[0]['concepts'])} concepts the best latent's AUROC on held-out scenes is {mean(latent):.3f} "
        f"on average and the best raw neuron's {mean(neuron):.3f} (latents ahead in {won} of {len(results)} seeds, on "
        f"the levels {', '.join(ahead) or 'none'}); among the objects' own tokens {mean(within[0]):.3f} against "
        f"{mean(within[1]):.3f}; the paper's pooled latents reach "
        f"{mean(over_concepts(results, 'recipe_literal_auroc')):.3f}, minus those of all images "
        f"{mean(over_concepts(results, 'recipe_auroc')):.3f}, and "
        f"{mean(over_concepts(results, 'recipe_precision')):.0%} of their most similar tokens lie in the mask; "
        f"monosemanticity is {scores[0]:.3f} for latents and {scores[1]:.3f} for neurons."
    )


def _report(options: Options, study: ConceptStudy, results: list[Result], seeds: list[int]) -> str:
    levels = list(results[0]["levels"])
    shown = [
        (
            level,
            *(
                with_spread([r["levels"][level][name] for r in results if name in r["levels"][level]], 3)
                if all(name in r["levels"][level] for r in results)
                else ""
                for name in FIGURES
            ),
        )
        for level in levels
    ]
    options.say(f"\nAUROC and IoU on held-out scenes (mean ± standard deviation of {len(seeds)} seeds)")
    options.say(text_table(("", *FIGURES.values()), shown))
    verdict = verdict_of(results)
    write_results(
        options,
        "fig1",
        {
            "seeds": seeds,
            "data": study.bench.config(),
            "training": study.models.config.to_dict(),
            "sizes": vars(study.sizes),
            "results": results,
            "verdict": verdict,
        },
    )
    rows = [
        {"level": LEVEL_OF[concept], "concept": concept, "figure": name, "mean": mean(values), "spread": spread(values),
         "seeds": len(values)}
        for concept in results[0]["concepts"]
        for name in FIGURES
        if (values := [r["concepts"][concept][name] for r in results if name in r["concepts"].get(concept, {})])
    ]  # fmt: skip
    write_csv(options.out / "fig1.csv", rows)
    _draw_levels(options, results)
    _draw_maps(options, study.tiles(seeds[0], results[0]["concepts"]), results[0]["concepts"])
    made, images = study.atlas(seeds[0])
    note = "Concepts are chosen and measured on the same held-out scenes, so their AUROCs are optimistic."
    write_atlas(options.out / "atlas.html", made, images, title="TIDE on the bundled pipeline", note=note)
    return verdict


def _draw_levels(options: Options, results: list[Result]) -> None:
    figure, axes = charts.panels(2, width=7.0, height=3.6)
    levels = [level for level in CONCEPTS if level in results[0]["levels"]]
    for axis, names, title in (
        (axes[0], ("auroc", "neuron_auroc", "recipe_auroc"), "AUROC over all tokens"),
        (axes[1], ("within_auroc", "within_neuron_auroc"), "AUROC among the objects' tokens"),
    ):
        kept = [level for level in levels if all(names[0] in r["levels"][level] for r in results)]
        for i, name in enumerate(names):
            for j, level in enumerate(kept):
                values = [r["levels"][level][name] for r in results]
                at = j + 0.22 * (i - (len(names) - 1) / 2)
                label = FIGURES[name] if j == 0 else None
                axis.bar(at, mean(values) - 0.5, 0.2, bottom=0.5, color=charts.COLOURS[i], label=label)
                axis.plot([at] * len(values), values, "o", color="black", markersize=2.5)
        axis.set_xticks(range(len(kept)), kept, fontsize="small")
        axis.set(ylim=(0.5, 1.08), yticks=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0], title=title)
        axis.legend(frameon=False, fontsize="small", loc="upper center", ncols=len(names))
    charts.save(figure, options.out / "fig1-levels.png")


def _draw_maps(options: Options, tiles: dict[str, list[list[np.ndarray]]], table: dict[str, dict[str, Any]]) -> None:
    """Four concepts to a row; each has its images in rows: the image, the pooled latents' score, the best latent."""
    figure, axes = charts.panels(len(tiles), width=4.4, height=4.9, columns=4)
    for axis, (concept, rows) in zip(axes, tiles.items(), strict=True):
        sheet = np.concatenate([np.concatenate([_framed(tile) for tile in row], 1) for row in rows], 0)
        axis.imshow(sheet, interpolation="nearest")
        axis.set_axis_off()
        found = table[concept]
        axis.set_title(
            f"{concept} ({LEVEL_OF[concept]}): image | pooled latents | latent {found['latent']}\n"
            f"AUROC {found['recipe_auroc']:.2f} and {found['auroc']:.2f}, IoU {found['iou']:.2f}",
            fontsize="small",
        )
    charts.save(figure, options.out / "fig1.png")


def _framed(tile: np.ndarray) -> np.ndarray:
    return np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=255)
