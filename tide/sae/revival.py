"""Revival of dead latents (section 4.4): counts silence in tokens and restarts silent latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.sae.model import TIDE


class Revival:
    """Keeps, per latent, the number of tokens since it last fired, and resets latents silent for too long.

    A dead latent restarts at the direction of the residual of one of the worst-reconstructed tokens of the batch:
    its decoder row is that unit direction, its encoder row the same, its bias the mean bias of the living latents,
    and its optimiser moments are cleared.
    """

    def __init__(self, n_latents: int, after_tokens: int) -> None:
        self.silent_for = torch.zeros(n_latents, dtype=torch.int64)
        self.after_tokens = after_tokens

    def count(self, fired: Tensor, n_tokens: int) -> None:
        """``fired [n_latents]``: on how many of the step's ``n_tokens`` tokens each latent was active."""
        self.silent_for = self.silent_for.to(fired.device)
        self.silent_for = torch.where(fired > 0, 0, self.silent_for + n_tokens)

    @property
    def dead(self) -> Tensor:
        return self.silent_for >= self.after_tokens

    @torch.no_grad()
    def revive(self, model: TIDE, optimizer: torch.optim.Optimizer, x: Tensor, x_hat: Tensor) -> int:
        """Resets the dead latents from the rows of ``x`` that ``x_hat`` misses most; returns how many."""
        dead = self.dead.nonzero().squeeze(1)
        residual = (x - x_hat).float()
        n = min(len(dead), len(x))
        if n == 0:
            return 0
        dead = dead[:n]
        worst = residual.square().sum(1).topk(n).indices
        directions = F.normalize(residual[worst], dim=1)
        alive = ~self.dead
        encoder_norm = model.W_enc[alive].norm(dim=1).mean() if alive.any() else torch.ones(())
        model.W_dec[dead] = directions.to(model.W_dec)
        model.W_enc[dead] = (directions * encoder_norm).to(model.W_enc)
        if model.b_enc is not None:
            model.b_enc[dead] = model.b_enc[alive].mean() if alive.any() else 0.0
        for parameter in (model.W_enc, model.W_dec, model.b_enc):
            for moment in optimizer.state.get(parameter, {}).values() if parameter is not None else ():
                if isinstance(moment, Tensor) and moment.shape[:1] == parameter.shape[:1]:
                    moment[dead] = 0
        self.silent_for[dead] = 0
        return n
