"""Revival of dead latents (section 4.4): counts silence in tokens and restarts silent latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.sae.model import TIDE
from tide.world import World


class Revival:
    """Keeps, per latent, the number of tokens since it last fired, and resets latents silent for too long.

    A dead latent restarts at the direction of the residual of a token of the batch, drawn with a probability in
    proportion to its squared error, so that badly reconstructed tokens are served first, and no two latents start
    alike. Its decoder row is that unit direction; its encoder row is tied to it, at a fifth of the living rows' mean
    norm, and its bias is zero, so that it enters the code gently; its optimiser moments are cleared.

    In a transcoder, where the residual is of the target, the encoder row is the direction in which the same token's
    input differs from the mean of the batch: the latent fires on inputs like this one, and adds what was missing there.
    """

    ENCODER_SHARE = 0.2

    def __init__(self, n_latents: int, after_tokens: int, device: torch.device | None = None) -> None:
        self.silent_for = torch.zeros(n_latents, dtype=torch.int64, device=device)
        self.after_tokens = after_tokens

    def count(self, fired: Tensor, n_tokens: int) -> None:
        """``fired [n_latents]``: on how many of the step's ``n_tokens`` tokens each latent was active."""
        self.silent_for = self.silent_for.to(fired.device).add_(n_tokens).masked_fill_(fired > 0, 0)

    @property
    def dead(self) -> Tensor:
        """bool ``[n_latents]``: silent for ``after_tokens`` tokens or more."""
        return self.silent_for >= self.after_tokens

    @torch.no_grad()
    def revive(
        self,
        model: TIDE,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        x_hat: Tensor,
        generator: torch.Generator,
        world: World | None = None,
        *,
        inputs: Tensor | None = None,
    ) -> int:
        """Resets dead latents from the rows of ``x`` that ``x_hat`` misses most; returns how many.

        At most one latent per sixteen rows is reset at a time; the others wait for the next batch. ``x`` and
        ``x_hat`` are ``[N, d_model]``, ``generator`` is of the CPU. The ranks of ``world`` hold equal parts of the
        batch and reset the same latents, or each those that it holds of the model's. Of a transcoder ``x`` is the
        target, and ``inputs [N, d_model]`` are what it encodes.
        """
        world = world or World()
        residual = (x - x_hat).float()
        error = world.tokens.gathered(residual.square().sum(1))
        # Rows without error have no direction to give, and multinomial draws none of them.
        most = min(max(1, len(error) // 16), int((error > 0).sum()))
        dead = self.dead.nonzero().squeeze(1)
        of_ranks = model.among.gathered(torch.tensor([len(dead)], device=dead.device)).tolist()
        n_revived, before = min(most, sum(of_ranks)), sum(of_ranks[: model.among.number])
        if n_revived == 0:
            return 0
        dead = dead[: max(0, most - before)]
        rows = torch.multinomial(error.cpu(), n_revived, generator=generator).to(x.device)[before:][: len(dead)]
        directions = F.normalize(_rows_of_all(residual, rows, world.tokens), dim=1)
        firing = directions
        if inputs is not None:
            mean = world.tokens.summed(inputs.float().sum(0)) / len(error)
            firing = F.normalize(_rows_of_all(inputs.float() - mean, rows, world.tokens), dim=1)
        model.W_enc[dead] = (firing * self._norm_of_living(model) * self.ENCODER_SHARE).to(model.W_enc)
        model.W_dec[dead] = directions.to(model.W_dec)
        if model.b_enc is not None:
            model.b_enc[dead] = 0.0
        if model.activation is not None:  # it may have parameters of its own for each latent
            model.activation.restart(dead)
        for parameter in model.by_latent():
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape[:1] == parameter.shape[:1]:
                    moment[dead] = 0
        self.silent_for[dead] = 0
        return n_revived

    def _norm_of_living(self, model: TIDE) -> Tensor:
        """The mean norm of the living latents' encoder rows; 1 without any."""
        norms = model.W_enc[~self.dead].norm(dim=1).float()
        total, count = model.among.summed(torch.stack([norms.sum(), norms.new_tensor(len(norms))]))
        return torch.where(count > 0, total / count, 1.0)


def _rows_of_all(own: Tensor, rows: Tensor, world: World) -> Tensor:
    """The given rows of all ranks' parts, one after the other, of which ``own`` is this one's."""
    rank = rows // len(own)
    found = own[rows % len(own)]
    return world.summed(found.masked_fill((rank != world.number).unsqueeze(1), 0))
