"""What trained latents must beat: parts drawn at random in their place, and raw activations without a dictionary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.adapters import Adapter, Call, adapter_for
from tide.evaluation.diffusion_loss import Intervention
from tide.evaluation.reconstruction import Reconstruct
from tide.sae.codes import Codes
from tide.scenes.pipeline import build_transformer, load_pipeline

#: Of the weights of the random transformer.
SEED = 20_000


def scenes_adapter(device: torch.device | str = "cpu", *, random: bool = False) -> Adapter:
    """The bundled pipeline on ``device``; with ``random`` its transformer has the weights that a training starts
    from, the same in every process."""
    pipe = load_pipeline()
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            transformer = build_transformer().eval()
        transformer.register_to_config(_name_or_path="scenes, random weights")
        pipe.register_modules(transformer=transformer)
    return adapter_for(pipe.to(device))


@dataclass(frozen=True)
class StrongestNeurons:
    """Activations rebuilt from their mean and, of each token, the ``k`` neurons furthest from it."""

    mean: Tensor
    k: int

    def project(self, x: Tensor) -> Tensor:
        """The reconstruction of ``x [..., d_model]``."""
        mean = self.mean.to(x)
        away = x - mean
        kept = away.abs().topk(min(self.k, away.shape[-1]), dim=-1).indices
        return mean + torch.zeros_like(away).scatter(-1, kept, away.gather(-1, kept))

    def reconstruct(self) -> Reconstruct:
        def project(batch: ActivationBatch) -> tuple[Tensor, Codes | None]:
            return self.project(batch.x.float()), None

        return project

    def intervention(self) -> Intervention:
        def project(x: Tensor, call: Call) -> Tensor:
            return self.project(x.float()).to(x.dtype)

        return project
