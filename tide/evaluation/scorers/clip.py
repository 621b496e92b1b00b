"""CLIP: how well an image agrees with a text."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.scorers.base import (
    ImageTextScorer,
    check_images,
    check_texts,
    provenance,
    require,
    sha256,
    to_pixels,
)
from tide.files import read_json

EXPECTED = "the folder of a CLIP model as transformers saves it (config.json, model.safetensors, tokenizer, processor)"


class CLIPScorer(ImageTextScorer):
    """A CLIP model of transformers from a local folder.

    ``similarity`` is the cosine of the two embeddings ("CLIP-T" in papers on editing). The CLIPScore of torchmetrics
    is max(100 m, 0) with m its mean over the images. Images go in as 8-bit pixels, as they are saved; the folder's
    processor resizes and crops them. Texts longer than the model reads (77 tokens) are cut, with a warning.

    Raises :class:`~tide.errors.TideError` for a folder that is missing, is of another model or lacks weights, and where
    transformers cannot load it.
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise TideError(f"{folder} is not a folder; give {EXPECTED} (nothing is downloaded)")
        config = read_json(self.folder / "config.json")
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind != "clip":  # transformers would warn and draw random weights
            raise TideError(f"{self.folder} holds a model of type {kind!r}, not 'clip'; give {EXPECTED}")
        modeling = require("transformers.models.clip.modeling_clip", "CLIP")
        processing = require("transformers.models.clip.processing_clip", "CLIP")
        try:
            self.model, loading = modeling.CLIPModel.from_pretrained(
                self.folder, local_files_only=True, output_loading_info=True
            )
            self.processor = processing.CLIPProcessor.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # missing and damaged files raise errors of many kinds
            reason = " ".join(str(error).split())
            raise TideError(f"{self.folder} could not be loaded ({reason}); give {EXPECTED}") from error
        if missing := sorted(loading["missing_keys"]):
            raise TideError(f"{self.folder} lacks {len(missing)} weights, such as {missing[0]}; give {EXPECTED}")
        self.model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to ``[B, e]`` float32 on the model's device, not normalised."""
        pixels = to_pixels(check_images(images)).cpu()
        inputs = self.processor.image_processor(images=list(pixels), return_tensors="pt")
        return _embeddings(self.model.get_image_features(inputs["pixel_values"].to(self.model.device)))

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """``B`` texts to ``[B, e]`` float32 on the model's device, not normalised."""
        check_texts(texts)
        tokenizer, longest = self.processor.tokenizer, self.model.config.text_config.max_position_embeddings
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        if max(lengths) > longest:
            message = f"a text of {max(lengths)} tokens is cut to the {longest} that CLIP reads"
            warnings.warn(message, stacklevel=3)  # 2 is no_grad's wrapper
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return _embeddings(self.model.get_text_features(**inputs.to(self.model.device)))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """As :class:`~tide.evaluation.scorers.Scorer` says, and the image processor's class."""
        files = sorted(self.folder.glob("*.safetensors")) or sorted(self.folder.glob("*.bin"))
        hashes = {file.name: sha256(file) for file in files}
        stated = provenance(self, type(self.model).__name__, self.folder, hashes, "transformers")
        # Its two implementations, with PIL and with torchvision, resize slightly differently.
        return stated | {"processor": type(self.processor.image_processor).__name__}


def _embeddings(output: Any) -> Tensor:
    """The projected embeddings: what transformers 4 returns, and 5 as the pooled output."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float()
