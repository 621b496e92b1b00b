"""``tide guard``: guards that keep an unwanted concept out of images, made, shown and drawn under."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from tide.cli.command import Command
from tide.cli.options import Data, Model
from tide.cli.usage import Aspect, kind_of_data, with_option
from tide.cli.values import Count, MaybeFolder, MaybeText, Number, Seed, Text, option, read_by
from tide.errors import TideError

if TYPE_CHECKING:
    from tide.adapters import Adapter
    from tide.guards import Guard as Made
    from tide.sae import TIDE

MAKE, SHOW, DRAW = "make", "show", "draw"
ACTIONS = (MAKE, SHOW, DRAW)


def _action(text: str) -> str:
    if text not in ACTIONS:
        raise TideError(f"{text[:60]!r} is not an action; use {MAKE}, {SHOW} or {DRAW}")
    return text


_ACTION = (
    "make: from images and captions, into --out; show: what the guard in GUARD does and how it was validated; draw: "
    "--prompt without it and under it, into --out"
)


@dataclass(frozen=True, kw_only=True)
class Guard(Command):
    """Make a guard that keeps an unwanted concept out of every image, show one, or draw under it.

    A guard watches the latents of one block. An image that is going to show the concept has its words replaced from the
    next step on; all others keep their bits. `tide edit --guard` draws edits under guards, and `tide.guard` in Python.
    With --pipeline scenes and without --data, a guard is made from rendered scenes, of a class or a style; with --data,
    from images whose captions hold the word and images whose captions do not.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        Aspect(
            lambda asked: f"by {asked.action}",
            {
                f"by {MAKE}": "concept put sae out images_per_concept timesteps batch_size seed backend data images "
                "size skip_unreadable split image_column caption_column pipeline adapter component device dtype "
                "offload trust_remote_code",
                f"by {SHOW}": "",
                f"by {DRAW}": "prompt out n_steps guidance seed size pipeline adapter component device dtype "
                "offload trust_remote_code",
            },
        ),
        with_option("data", uses="images_per_concept timesteps batch_size"),
        kind_of_data(),
    )

    action: Annotated[
        str, read_by(_action, "ACTION"), tyro.conf.Positional, tyro.conf.arg(metavar="ACTION", help=_ACTION)
    ]
    folder: Annotated[
        str | None,
        read_by(str, "GUARD"),
        tyro.conf.Positional,
        tyro.conf.arg(metavar="GUARD", help="guard to show or to draw under"),
    ] = None
    concept: MaybeText = None
    """the unwanted concept, a word of the captions"""
    put: MaybeText = None
    """the word that stands in for it"""
    sae: Annotated[str | None, option("CHECKPOINT")] = None
    """checkpoint folder that `tide train` wrote"""
    out: MaybeFolder = None
    """folder for the guard, or for the pictures"""
    prompt: MaybeText = None
    """prompt to draw"""
    n_steps: Count = 20
    """sampling steps"""
    guidance: Number = 4.5
    """guidance scale"""
    source: Data = field(default_factory=Data)
    images_per_concept: Count = 64
    """images with the concept, and without it; half of them validate the guard"""
    timesteps: Count = 10
    """timesteps to read them at"""
    batch_size: Count = 4
    """images per pass"""
    backend: Text = "auto"
    """kernel backend: auto, reference, triton or native"""
    model: Model = field(default_factory=Model)
    seed: Seed = 0
    """random seed"""

    def run(self) -> None:
        if self.action == MAKE:
            self._make()
        elif self.folder is None:
            raise TideError(f"no guard is named; give its folder: tide guard {self.action} GUARD")
        elif self.action == SHOW:
            self._show(self.folder)
        else:
            self._draw(self.folder)

    def _show(self, folder: str) -> None:
        from tide.guards import load_guard

        print(described(load_guard(folder)))

    def _draw(self, folder: str) -> None:
        from tide.cli.guard_draw import draw

        if self.prompt is None or self.out is None:
            raise TideError("a guard is shown at work on a prompt; give --prompt and --out")
        size = self.source.size
        sampling = {"n_steps": self.n_steps, "guidance_scale": self.guidance, "seed": self.seed, "size": size}
        draw(Path(folder), Path(self.out), self.prompt, self.model, sampling, self.made_by())

    def _make(self) -> None:
        from tide.cli import common
        from tide.cli.options import Autoencoder
        from tide.loading import BUNDLED

        if self.folder is not None:
            raise TideError(f"{self.folder!r} is not used by {MAKE}; give the folder as --out")
        for name in ("concept", "put", "sae", "out"):
            if getattr(self, name) is None:
                raise TideError(f"--{name} is not given; a guard is made with --concept, --put, --sae and --out")
        autoencoder = Autoencoder(sae=str(self.sae), backend=self.backend)
        pipeline = common.pipeline_of(self.model, autoencoder)
        if self.source.data is None and pipeline != BUNDLED:
            raise TideError("what to make the guard from is not clear; give --data")
        with common.output_folder(Path(str(self.out))):
            adapter = common.adapter_of(self.model, pipeline, sae=autoencoder.sae)
            self._write(adapter, pipeline, autoencoder)

    def _write(self, adapter: Adapter, pipeline: str, autoencoder: Any) -> None:
        from tide.cli import common
        from tide.fingerprint import pipeline_fingerprints
        from tide.guards import save_guard
        from tide.runs import write_run

        model, out = common.sae_of(autoencoder, adapter, pipeline), Path(str(self.out))
        made, data = (self._from_scenes if self.source.data is None else self._from_captions)(adapter, model)
        holds = common.about(
            "guard",
            adapter,
            pipeline,
            model,
            autoencoder,
            weights=pipeline_fingerprints(adapter.pipe),
            data=data,
            configuration={"concept": self.concept, "put": self.put, "images": data["images"]},
            measured=dict(made.validated),
            files={"guard.json": "figures", "guard.safetensors": "weights", "latents": "autoencoder"},
        )
        with common.writing(out):
            save_guard(out, made)
            write_run(out, holds, self.made_by())
        print(f"{described(made)}\n\nThe guard is in {out}; `tide guard draw {out} --prompt ...` shows it at work.")

    def _from_scenes(self, adapter: Adapter, model: TIDE) -> tuple[Made, dict[str, Any]]:
        from tide.studies.scene_guard import IMAGES, scene_guard

        n = self.source.images or IMAGES
        made = scene_guard(adapter, model, str(self.concept), str(self.put), n_images=n, seed=self.seed)
        return made, {"name": "scenes", "images": n + n // 2}

    def _from_captions(self, adapter: Adapter, model: TIDE) -> tuple[Made, dict[str, Any]]:
        from tide.cli.common import source_of
        from tide.guards.from_captions import caption_examples
        from tide.guards.making import make_guard

        source = source_of(self.source, adapter, seed=self.seed, batch_size=self.batch_size)
        examples = caption_examples(
            adapter,
            model,
            source,
            str(self.concept),
            images_per_concept=self.images_per_concept,
            timesteps=self.timesteps,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        made = make_guard(adapter, model, examples, str(self.concept), str(self.put))
        return made, {"name": source.name, "images": len(examples.captions)}


def described(guard: Made) -> str:
    """What a guard looks for, where, what it puts there, and how it was validated, as text."""
    from tide.tables import text_table

    own = guard.made_for
    rows = [
        ["concept", guard.concept],
        ["watches", f"{len(guard.when.features)} latents of block {own.block} ({own.family}, {own.tensor})"],
        ["at timesteps", f"{guard.when.timesteps[0]:g} to {guard.when.timesteps[-1]:g} ({len(guard.when.timesteps)})"],
    ]
    if guard.words is not None:
        rows.append(["words", f"{guard.concept} -> {guard.put}, a map of rank {guard.words.rank}"])
    if guard.refuge is not None:
        neutral = guard.validated.get("neutral_caption", "a neutral caption")
        rows.append(["refuge", f"{neutral!r}, after {guard.patience} calls in which the words did not help"])
    if guard.what is not None:
        rows.append(["tokens moved", f"by {guard.what.factor:g} times a direction"])
    for name, value in guard.validated.items():
        if isinstance(value, dict):
            rows += [
                [f"{name.replace('_', ' ')}, {inner.replace('_', ' ')}", _in_words(v)] for inner, v in value.items()
            ]
    return text_table(["guard", ""], rows)


def _in_words(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
