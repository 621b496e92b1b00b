"""Z-Image: image and text in one stream, modulated by the timestep alone, without a shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.guidance import Guidance
from tide.adapters.registry import declared
from tide.adapters.spec import QUARTERS, Blocks, Embedding, Sinusoid, Spec, Text

_OMNI = "it reads several pictures and their descriptions, with a modulation of each token"


@declared
class ZImageAdapter(DeclaredAdapter):
    """Blocks are the joint ones (``layers``), not the refiners before them. The transformer takes lists of images and
    of texts of any length; a row of its blocks is the image, then the text, each padded to a multiple of 32 tokens."""

    spec = Spec(
        family="z_image",
        transformer="ZImageTransformer2DModel",
        models="Z-Image, Z-Image-Turbo",
        needs="0.39",
        pipelines={
            "ZImagePipeline": (),
            "ZImageImg2ImgPipeline": ("image",),
            "ZImageInpaintPipeline": ("image", "mask_image"),
            "ZImageControlNetPipeline": ("control_image",),
            "ZImageControlNetInpaintPipeline": ("image", "mask_image", "control_image"),
        },
        refused={"ZImageOmniPipeline": (_OMNI, None)},
        blocks=(
            Blocks(
                "layers", "image + text", "attention", "feed_forward", linear="adaLN_modulation.0", chunks=QUARTERS
            ).throughout(),
        ),
        embedding=Embedding(
            "t_embedder", sinusoid=Sinusoid(), embedder="mlp", layers=("0", "2"), factor=1000, activation=False
        ),
        text=Text({"cap_feats": 0}),
        guidance="conditional, unconditional",
        width="dim",
        sign=-1,
        latents_argument="x",
        timestep_argument="t",
        timestep_unit=(1.0, -1 / 1000),  # the model counts from noise (0) to image (1)
        size=1024,
        sigmas=True,
        max_shift=1.15,
        notes=("guidance_scale 0 draws without guidance, as Turbo wants; 1 guides already.",),
    )

    def grid_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        return self.token_grid(*self.arguments(args, kwargs)["x"][0].shape[-2:])

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        """By which texts they are: steps beyond ``cfg_truncation`` hold the rows of the prompts alone."""
        given = [id(each) for each in self.arguments(args, kwargs)["cap_feats"]]
        prompts, negatives = ([id(each) for each in texts] for texts in (guidance.texts or [((), ())])[-1])
        if set(given).isdisjoint([*prompts, *negatives]):
            return super().conditional_of(args, kwargs, guidance)
        return torch.tensor([each not in negatives for each in given])

    def _given(self, part: Any) -> Tensor:
        """Texts padded with zeros, which no state of a text encoder is."""
        return super()._given(torch.nn.utils.rnn.pad_sequence(part, batch_first=True))

    def text_arguments(self, text: EncodedText, n_images: int | None) -> dict[str, Any]:
        return {"cap_feats": [row[row.any(-1)] for row in text["cap_feats"]]}

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        return {"x": list(latents.unsqueeze(2))}

    def unpacked(self, latents: Any, size: tuple[int, ...]) -> Tensor:
        return torch.stack(latents).squeeze(2) if isinstance(latents, list) else latents
