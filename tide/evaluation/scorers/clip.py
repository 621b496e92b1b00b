"""CLIP: how well an image agrees with a text."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.scorers.base import (
    ImageTextScorer,
    check_images,
    check_texts,
    provenance,
    require,
    to_pixels,
)
from tide.files import file_digest, open_tensors, read_json
from tide.messages import one_line

EXPECTED = "the folder of a CLIP model as transformers saves it (config.json, model.safetensors, tokenizer, processor)"
#: Pixels a side to which a processor may resize.
LARGEST = 4096
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class CLIPScorer(ImageTextScorer):
    """A CLIP model of transformers from a local folder.

    ``similarity`` is the cosine of the two embeddings ("CLIP-T" in papers on editing). The CLIPScore of torchmetrics
    is max(100 m, 0) with m its mean over the images. Images go in as 8-bit pixels, as they are saved; the folder's
    processor resizes and crops them. Texts longer than the model reads (77 tokens) are cut, with a warning.

    ``folder`` is the model's, ``device`` where it computes.

    Raises :class:`~tide.errors.TideError` for a folder that is missing, is of another model or lacks weights, and where
    transformers cannot load it.
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise TideError(f"{folder} is not a folder; give {EXPECTED} (nothing is downloaded)")
        config = read_json(self.folder / "config.json", dict[str, Any])
        if (kind := config.get("model_type")) != "clip":  # transformers would warn and draw random weights
            raise TideError(f"{self.folder} holds a model of type {kind!r}, not 'clip'; give {EXPECTED}")
        self.files = _weight_files(self.folder)
        require("transformers.models.clip.modeling_clip", "CLIP")
        require("transformers.models.clip.processing_clip", "CLIP")
        try:
            loading = self._load()
        except TideError:
            raise
        except Exception as error:  # missing and damaged files raise errors of many kinds
            reason = one_line(error)
            raise TideError(f"{self.folder} could not be loaded ({reason}); give {EXPECTED}") from error
        if missing := sorted(loading["missing_keys"]):
            raise TideError(f"{self.folder} lacks {len(missing)} weights, such as {missing[0]}; give {EXPECTED}")
        self.model.eval().requires_grad_(False).to(device)
        self._try()

    def _load(self) -> dict[str, Any]:
        """Loads model and processor; returns what transformers says of it."""
        from transformers.models.clip import modeling_clip, processing_clip

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        _check_sizes(self.folder, self.files)
        self.model, loading = modeling_clip.CLIPModel.from_pretrained(
            self.folder, output_loading_info=True, use_safetensors=True, dtype=torch.float32, **local
        )
        self.processor = processing_clip.CLIPProcessor.from_pretrained(self.folder, **local)
        for name in ("size", "crop_size"):
            sides = dict(getattr(self.processor.image_processor, name)).values()
            if any(side is not None and not 0 < side <= LARGEST for side in sides):
                raise TideError(f"the processor of {self.folder} has a {name} beyond {LARGEST} pixels; give {EXPECTED}")
        return dict(loading)

    def _try(self) -> None:
        """Embeds one image and one text, to find a processor or weights that do not work."""
        try:
            found = [self.embed_images(torch.zeros(1, 3, 64, 64)), self.embed_texts(["a"])]
        except Exception as error:
            reason = one_line(error)
            raise TideError(f"{self.folder} embeds nothing ({reason}); give {EXPECTED}") from error
        if not all(bool(each.isfinite().all()) for each in found):
            raise TideError(f"{self.folder} gives embeddings that are not finite; give {EXPECTED}")

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
        hashes = {file.name: file_digest(file) for file in self.files}
        stated = provenance(self, type(self.model).__name__, self.folder, hashes, "transformers")
        # Its two implementations, with PIL and with torchvision, resize slightly differently.
        return stated | {"processor": type(self.processor.image_processor).__name__}


def _embeddings(output: Any) -> Tensor:
    """The projected embeddings: what transformers 4 returns, and 5 as the pooled output."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float()


class _Index(TypedDict):
    weight_map: dict[str, str]


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder's weights: one, or those that an index names."""
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise TideError(f"{folder} holds no {WEIGHTS}; give {EXPECTED} (pickles are never loaded)")
        return [folder / WEIGHTS]
    names = set(read_json(folder / INDEX, _Index)["weight_map"].values())
    for name in names:
        if Path(name).name != name:
            raise TideError(f"{folder / INDEX} names {name}, which is not in the folder; give {EXPECTED}")
    return sorted(folder / name for name in names)


def _check_sizes(folder: Path, files: list[Path]) -> None:
    """Checks that there are as many weights as the config asks for: a model is built from it next, and a false config
    must not ask for more memory than there is."""
    from transformers.models.clip import modeling_clip

    shapes: list[list[int]] = []
    for path in files:
        with open_tensors(path, "the model") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]
    config = modeling_clip.CLIPConfig.from_pretrained(folder, local_files_only=True)
    n_layers = sum(part.num_hidden_layers for part in (config.text_config, config.vision_config))
    if n_layers <= len(shapes):
        with torch.device("meta"):
            wanted = sum(value.numel() for value in modeling_clip.CLIPModel(config).parameters())
        if wanted <= 1.1 * sum(math.prod(shape) for shape in shapes):
            return
    raise TideError(f"{folder} holds fewer weights than its config.json asks for; give {EXPECTED}")
