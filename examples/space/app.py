"""One page that steers images by latents of a trained autoencoder, for a Hugging Face Space or for this machine.

``TIDE_RUN``: folder of a checkpoint with its index, default ``run`` beside this file. ``TIDE_PIPELINE``: a diffusers
name or folder, where the checkpoint is not of the bundled pipeline.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from steering import ROW, Asked, Steering

from tide.errors import TideError

TITLE = "Steer a diffusion transformer by its latents"
SAID = """\
A sparse autoencoder has split what one block of the transformer computes into latents. Choose one, look at the images
on which it is strongest, and draw a prompt with the latent changed: same noise, same words. [How it is
trained](https://arxiv.org/abs/2503.07050).
"""
HOW = "add: where it is off, too; multiply: where it is on"
EVERYWHERE = "Nothing painted is everywhere."
#: Of adding; what a concept's latents stand for shows, and the picture holds.
STRENGTH = 0.5


def painted(editor: dict[str, Any] | None) -> np.ndarray | None:
    """Where an ImageEditor was painted, bool ``[H, W]``; None without a layer."""
    layers = (editor or {}).get("layers") or []
    alphas = [np.asarray(layer.convert("RGBA"))[..., 3] > 0 for layer in layers]
    return np.logical_or.reduce(alphas) if alphas else None


def on_canvas(picture: Image.Image) -> dict[str, Any]:
    """An ImageEditor's value: a picture with nothing painted on it."""
    return {"background": picture, "layers": [], "composite": None}


def answers(steering: Steering, asked: Asked, in_row: bool) -> Iterator[tuple[Any, ...]]:
    """What the page shows while a drawing goes on: the pair for the slider, the row, how far it is, JSON and Python."""
    recipe = steering.recipe(asked)
    json, python = steering.written(recipe)
    for drawn in steering.draw(recipe, ROW if in_row else (1.0,)):
        # Strength 1 is what the recipe says; until it is drawn the latest is beside the image without the change.
        latest = drawn.after.get(1.0) or next(reversed(drawn.after.values()), drawn.before)
        pair = None if drawn.before is None else (drawn.before, latest)
        row = [(image, f"{strength:g} times") for strength, image in drawn.after.items()] if in_row else []
        yield pair, row, drawn.said, json, python


def make_page(steering: Steering) -> Any:
    """The page. Nothing but its button draws."""
    import gradio as gr

    choices, canvas = steering.choices(), steering.canvas()
    chosen = choices[0][1] if choices else "0"

    def refusing(call: Any) -> Any:
        """A mistake is shown in one line and not as a traceback."""
        try:
            return call()
        except TideError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def pictures(latents: str) -> Any:
        return refusing(lambda: steering.pictures(latents))

    def draw(
        prompt: str,
        seed: float,
        guidance: float,
        n_steps: float,
        latents: str,
        how: str,
        strength: float,
        start: float,
        end: float,
        editor: dict[str, Any],
        in_row: bool,
    ) -> Iterator[tuple[Any, ...]]:
        steps, mask = (start / 100, end / 100), painted(editor)
        found = refusing(
            lambda: Asked(prompt, latents, how, strength, int(seed), int(n_steps), guidance, steps, mask)  # type: ignore[arg-type]
        )
        shown = answers(steering, found, in_row)
        while (each := refusing(lambda: next(shown, None))) is not None:
            yield each

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n\n{SAID}")
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(steering.prompt, label="Prompt", lines=2, max_length=1000)
                latents = gr.Dropdown(
                    choices, value=chosen, label="Concept or latent", info="or type numbers", allow_custom_value=True
                )
                with gr.Row():
                    how = gr.Radio([("add", "add"), ("multiply", "scale")], value="add", label="How", info=HOW)
                    strength = gr.Slider(-4, 8, STRENGTH, step=0.05, label="Strength", info="add: in strongest values")
                with gr.Row():
                    go = gr.Button("Draw", variant="primary")
                    stop = gr.Button("Stop", variant="secondary")
                in_row = gr.Checkbox(False, label="a row of strengths")
                top = gr.Gallery(
                    steering.pictures(chosen),
                    label="Its top images, grey where it is silent",
                    columns=3,
                    height=400,
                    allow_preview=False,
                    interactive=False,
                )
                use = gr.Checkbox(False, label="a click on an image takes its caption as the prompt")
                with gr.Accordion("Seed, guidance, steps, part of the run", open=False):
                    with gr.Row():
                        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
                        n_steps = gr.Slider(2, 50, 20, step=1, label="Steps")
                        guidance = gr.Slider(1, 12, steering.guidance, step=0.1, label="Guidance")
                    with gr.Row():
                        start = gr.Slider(0, 95, 0, step=5, label="Change from", info="% of the run; 0 is noise")
                        end = gr.Slider(5, 100, 100, step=5, label="Change to", info="% of the run; 100 is the image")
                with gr.Accordion("Mask: where to change the image", open=False):
                    mask = gr.ImageEditor(
                        value=on_canvas(_grey(canvas)),
                        type="pil",
                        label=EVERYWHERE,
                        sources=(),
                        transforms=(),
                        brush=gr.Brush(default_size=64, colors=["#ffa51e"], color_mode="fixed"),
                        canvas_size=canvas,
                        fixed_canvas=True,
                    )
                    under = gr.Button("Paint on the image that was drawn", size="sm")
            with gr.Column():
                pair = gr.ImageSlider(label="Before and after", type="pil", format="png", interactive=False)
                said = gr.Markdown("")
                row = gr.Gallery(
                    label="Row of strengths",
                    columns=4,
                    fit_columns=False,
                    height=210,
                    format="png",
                    interactive=False,
                    visible=False,
                )
                with gr.Accordion("Recipe: the same bits elsewhere", open=False):
                    json = gr.Code(language="json", label="For tide edit --recipe", interactive=False, max_lines=12)
                    python = gr.Code(language="python", label="Python", interactive=False, max_lines=12)

        def caption(event: gr.SelectData, wanted: bool, prompt: str) -> str:
            return (event.value or {}).get("caption") or prompt if wanted else prompt

        def onto(shown: Any) -> Any:
            if not shown or shown[0] is None:
                raise gr.Error("draw an image first", print_exception=False)
            return on_canvas(shown[0].resize(canvas))

        caption.__annotations__["event"] = gr.SelectData  # gradio reads it, and this module's are text
        latents.change(pictures, latents, top, show_progress="hidden", api_visibility="private")
        top.select(caption, [use, prompt], prompt, api_visibility="private")
        in_row.change(
            lambda wanted: gr.update(visible=wanted), in_row, row, show_progress="hidden", api_visibility="private"
        )
        under.click(onto, pair, mask, api_visibility="private")
        drawing = go.click(
            draw,
            [prompt, seed, guidance, n_steps, latents, how, strength, start, end, mask, in_row],
            [pair, row, said, json, python],
            concurrency_limit=1,  # one pipeline, one drawing at a time; the others wait in the queue
            show_progress="minimal",
            api_name="draw",
        )
        stop.click(None, cancels=[drawing], api_visibility="private")
    return page


def _grey(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (128, 128, 128))


def main() -> None:
    folder = os.environ.get("TIDE_RUN") or str(Path(__file__).parent / "run")
    try:
        steering = Steering(folder, os.environ.get("TIDE_PIPELINE"))
    except TideError as error:
        raise SystemExit(f"error: {error}") from None
    make_page(steering).queue(max_size=16).launch()


if __name__ == "__main__":
    main()
