"""DiT: drawn from ImageNet classes; every block embeds timestep and class on its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from tide.adapters.adaln import SIXTHS, copied_modulation
from tide.adapters.base import Adapter, Block, Chunk, Text, halves
from tide.adapters.guidance import Guidance
from tide.adapters.registry import register
from tide.adapters.standins import listened
from tide.adapters.vae import vae_of
from tide.adapters.weights import present
from tide.errors import TideError
from tide.sae.modulation import Modulation

#: Names of classes that a message lists.
_LISTED = 5
#: No model has more classes than numbers of so many digits.
_DIGITS = 9


@register(DiTTransformer2DModel, known_pipelines=True)
class DiTAdapter(Adapter):
    """A prompt is a class: its number, or its name where the pipeline knows names.

    An embedder in each block adds the class embedding to the timestep embedding (in the published models all embedders
    are alike). A row is unconditional if its class is the one after the last, which means "no class". The pipeline
    draws squares of one size.
    """

    family = "dit"
    shifts_latents = False
    steps_both_branches = True
    call_defaults: ClassVar[Mapping[str, Any]] = {"output_type": "pt"}

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.transformer_blocks)

    @property
    def d_model(self) -> int:
        config = self.transformer.config
        return int(config.num_attention_heads * config.attention_head_dim)

    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """That of the first block; see :meth:`conditioning_of_blocks`."""
        return self.conditioning_of_blocks([0], args, kwargs)[0]

    @torch.no_grad()
    def conditioning_of_blocks(
        self, blocks: Iterable[int], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[int, Tensor | None]:
        labels = self.arguments(args, kwargs)["class_labels"]
        return {block: self._class_embedding(block, labels) for block in blocks}

    def _class_embedding(self, block: int, labels: Tensor) -> Tensor:
        table = self._embed(block).class_embedder.embedding_table
        with present(self.transformer, table):
            return table(labels).float()

    def _embed(self, block: int) -> Any:
        return self.transformer.transformer_blocks[block].norm1.emb

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        """With ``next_block``, the conditioning must be the next block's as well."""
        index = self.modulated_block(block, chunk, next_block)
        shift, scale = SIXTHS[chunk]
        embed = self._embed(index)
        return copied_modulation(
            self.transformer,
            embed.time_proj,
            embed.timestep_embedder,
            self.transformer.transformer_blocks[index].norm1.linear,
            d_model=self.d_model,
            scale=scale,
            shift=shift,
            conditioned=True,
        )

    @property
    def _no_class(self) -> int:
        return int(self.transformer.config.num_embeds_ada_norm)

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Under guidance the pipeline calls the transformer with [conditional, unconditional] rows."""
        return halves(batch_size, do_cfg, conditional="first")

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

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The learned variance, where the model has one, is dropped."""
        latents = latents.to(self.device, self.dtype)
        if latents.shape[-2] != latents.shape[-1]:
            raise TideError(
                f"latents are {list(latents.shape[-2:])} and DiT draws squares; crop the images to a square"
            )
        prediction = self.transformer(
            latents,
            timestep=self.given_timestep(timestep, latents),
            class_labels=text["class_labels"].to(latents.device),
            return_dict=False,
        )[0]
        return prediction[:, : self.latent_channels].float()

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
