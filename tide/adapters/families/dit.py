"""DiT: drawn from ImageNet classes; every block embeds timestep and class on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.guidance import Guidance
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.adapters.standins import listened
from tide.adapters.vae import vae_of
from tide.errors import TideError

#: Names of classes that a message lists.
_LISTED = 5
#: No model has more classes than numbers of so many digits.
_DIGITS = 9


@declared
class DiTAdapter(DeclaredAdapter):
    """A prompt is a class: its number, or its name where the pipeline knows names.

    An embedder in each block adds the class embedding to the timestep embedding (in the published models all embedders
    are alike); with the next block's modulation, the conditioning must be the next block's as well. A row is
    unconditional if its class is the one after the last, which means "no class".
    """

    spec = Spec(
        family="dit",
        transformer="DiTTransformer2DModel",
        models="DiT-XL/2",
        pipelines={"DiTPipeline": ()},
        blocks=(Blocks(),),
        embedding=Embedding("norm1.emb", conditioned=True, of_block=True),
        text=Text(length=None),
        conditioning="class, embedded by each block",
        guidance="conditional, unconditional",
        flow_matching=False,
        shifts_latents=False,
        steps_both_branches=True,
        call_defaults={"output_type": "pt"},
        notes=("Prompts are classes, by number or by name. The pipeline draws squares of one size.",),
    )

    @property
    def _no_class(self) -> int:
        return int(self.transformer.config.num_embeds_ada_norm)

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        return (self.arguments(args, kwargs)["class_labels"] != self._no_class).cpu()

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """``class_labels [B]``; "" is no class."""
        return {"class_labels": torch.tensor([self._class_of(str(prompt)) for prompt in prompts], device=self.device)}

    def _class_of(self, prompt: str) -> int:
        names = getattr(self.pipe, "labels", {})
        text = prompt.strip()
        if text in names:
            return int(names[text])
        if not text:
            return self._no_class
        if not text.isdecimal() or len(text) > _DIGITS or int(text) >= self._no_class:
            raise TideError(f"{_shown(text)} is not a class of this model; {self._classes(text, names)}")
        return int(text)

    def _classes(self, text: str, names: Mapping[str, int]) -> str:
        """What to give instead of ``text``."""
        numbers = f"0..{self._no_class - 1}"
        if not names:
            return (
                "it has no names of classes, which diffusers drops when it saves a DiTPipeline; give numbers, "
                f"{numbers}, or add "
                '"id2label": {"0": "<name>", ...} to its model_index.json (in Python: set pipe.labels = {name: number})'
            )
        near = get_close_matches(text, names, 1)
        known = [*near, *(name for name in names if name not in near)]
        listed = ", ".join(repr(name) for name in known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")
        return f"give one of its {len(names)} names ({listed}) or of its numbers {numbers}"

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: EncodedText) -> Tensor:
        """As for every adapter, of square latents."""
        if latents.shape[-2] != latents.shape[-1]:
            raise TideError(
                f"latents are {list(latents.shape[-2:])} and DiT draws squares; crop the images to a square"
            )
        return super().denoise(latents, timestep, text)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n_steps: int,
        guidance_scale: float,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        """The pipeline has only one size (``height`` and ``width`` are checked against it) and no negative prompt."""
        self.check_steps(n_steps)
        own = tuple(side * self.pixels_per_latent for side in self.default_latents)
        asked = tuple(kwargs.pop(name, None) or side for name, side in zip(("height", "width"), own, strict=True))
        if asked != own:
            raise TideError(
                f"this pipeline draws {own[0]} x {own[1]} pixels, not {asked[0]} x {asked[1]}; give that size"
            )
        kwargs.pop("max_sequence_length", None)
        vae = vae_of(self.pipe, "call denoise: this pipeline decodes whatever it draws")
        with _decoded(vae) as latents:
            self.pipe(
                self.encode_prompts(prompts)["class_labels"].tolist(),
                num_inference_steps=n_steps,
                guidance_scale=guidance_scale,
                generator=generators,
                **{**self.call_defaults, **kwargs},
            )
        return latents[0] * vae.config.scaling_factor


@contextmanager
def _decoded(vae: Any) -> Iterator[list[Tensor]]:
    """Keeps the latents that ``vae`` decodes: this pipeline cannot return them."""
    latents: list[Tensor] = []
    with listened(vae, "decode", before=lambda z, *_, **__: latents.append(z)):
        yield latents


def _shown(text: str) -> str:
    """A caption as a message quotes it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
