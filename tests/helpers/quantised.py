"""Transformers whose linear layers a quantiser has replaced, for each quantiser that runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

#: What the tiny quantised models compute in.
COMPUTE = torch.float32


def _replaced(model: nn.Module, make: Callable[[nn.Linear], nn.Module | None]) -> None:
    """Puts what ``make`` returns in the place of every linear layer."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and (new := make(child)) is not None:
                setattr(parent, name, new.eval().requires_grad_(False))


def gguf(kind: str) -> Callable[[Any, Path], Any]:
    """Written to a GGUF file and loaded again, as pipelines with ``GGUFQuantizationConfig`` load theirs."""

    def load(model: Any, folder: Path) -> Any:
        package = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")
        from diffusers import GGUFQuantizationConfig

        quantised = package.GGMLQuantizationType[kind]
        block, _ = package.GGML_QUANT_SIZES[quantised]
        linear = {f"{name}.weight" for name, each in model.named_modules() if isinstance(each, nn.Linear)}
        writer = package.GGUFWriter(folder / "model.gguf", "tiny")
        for name, value in model.state_dict().items():
            array = value.float().numpy()
            if name in linear and array.shape[-1] % block == 0:
                writer.add_tensor(name, package.quants.quantize(array, quantised), raw_dtype=quantised)
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        model.save_config(folder)
        return type(model).from_single_file(
            str(folder / "model.gguf"),
            config=str(folder),
            quantization_config=GGUFQuantizationConfig(compute_dtype=COMPUTE),
            torch_dtype=COMPUTE,
        )

    return load


def torchao(name: str, **options: Any) -> Callable[[Any, Path], Any]:
    """Saved and loaded again with a ``TorchAoConfig``."""

    def load(model: Any, folder: Path) -> Any:
        kinds = pytest.importorskip("torchao.quantization", reason="torchao quantises")
        from diffusers import TorchAoConfig

        model.save_pretrained(folder)
        config = TorchAoConfig(getattr(kinds, name)(**options))
        return type(model).from_pretrained(folder, quantization_config=config, torch_dtype=COMPUTE)

    return load


def four_bits(**options: Any) -> Callable[[Any, Path], Any]:
    def quantise(model: Any, _: Path) -> Any:
        package = pytest.importorskip("bitsandbytes", reason="bitsandbytes quantises")

        def make(linear: nn.Linear) -> nn.Module | None:
            if linear.in_features % 64 or linear.out_features % 32:  # CPUs that multiply bfloat16 take no others
                return None
            new = package.nn.Linear4bit(
                linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=COMPUTE, **options
            )
            new.load_state_dict(linear.state_dict())
            return new.to("cpu")

        _replaced(model, make)
        return model

    return quantise


def eight_bits(threshold: float) -> Callable[[Any, Path], Any]:
    def quantise(model: Any, _: Path) -> Any:
        package = pytest.importorskip("bitsandbytes", reason="bitsandbytes quantises")

        def make(linear: nn.Linear) -> nn.Module:
            new = package.nn.Linear8bitLt(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                has_fp16_weights=False,
                threshold=threshold,
            )
            new.load_state_dict(linear.state_dict())
            return new.to("cpu")

        _replaced(model, make)
        return model

    return quantise


def quanto(kind: str) -> Callable[[Any, Path], Any]:
    def quantise(model: Any, _: Path) -> Any:
        package = pytest.importorskip("optimum.quanto", reason="quanto quantises")
        package.quantize(model, weights=getattr(package, kind))
        package.freeze(model)
        return model

    return quantise


def black_forest(kind: str) -> Callable[[Any, Path], Any]:
    """The layers that diffusers has for the eight and four bit files of FLUX."""

    def quantise(model: Any, _: Path) -> Any:
        utils = pytest.importorskip("diffusers.quantizers.bfl.utils", reason="diffusers 0.42 has these layers")

        def make(linear: nn.Linear) -> nn.Module | None:
            if linear.in_features % 16:
                return None
            new = utils.QUANTIZED_LINEARS[kind](
                linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=COMPUTE
            )
            parts = getattr(utils, f"quantize_{kind}")(linear.weight.data)
            names = ("weight", "weight_scale", "weight_scale_2")
            for name, value in zip(names, parts, strict=False):
                getattr(new, name).data = value
            if linear.bias is not None:
                new.bias.data = linear.bias.data.clone()
            return new

        _replaced(model, make)
        return model

    return quantise


class Unknown(nn.Linear):
    """A layer whose ``weight`` is not what it computes with: eighths of it are stored."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 8, self.bias)


def unknown(model: Any, _: Path) -> Any:
    """By a quantiser that nobody has heard of."""

    def make(linear: nn.Linear) -> nn.Module:
        new = Unknown(linear.in_features, linear.out_features, linear.bias is not None)
        new.load_state_dict(linear.state_dict())
        new.weight.data.div_(8)
        return new

    _replaced(model, make)
    return model
