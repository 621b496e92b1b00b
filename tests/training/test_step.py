"""The whole step against its plain form: dense autograd, clipping and AdamW, one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers import naive
from tests.helpers.trainings import ROWS, D, K, N, batch, config, model, trainer
from tide.sae import TIDE, TIDEConfig
from tide.training import LossConfig, ProgressiveK, RevivalConfig, Trainer
from tide.training.schedules import cosine_lr

LOSS = LossConfig(mse=1.3, cosine=0.7, temporal=1e-2, sparsity=0.5, reg=1e-3, auxk=0.1, k_aux=4)
STEPS = 6
CASES = {
    "all terms": {},
    "clipped": {"clip": 1e-2},
    "no regularisation": {"loss": replace(LOSS, reg=0.0)},
    "frozen decoder": {},
    "no modulation": {},
    "layer norm": {},
}


def made(case: str) -> TIDE:
    if case == "no modulation":
        sae = TIDE(TIDEConfig(D, N, K), seed=3)
    else:
        sae = model(pre_norm="layernorm" if case == "layer norm" else "none")
    sae.W_dec.requires_grad_(case != "frozen decoder")
    first = batch(0)
    sae.calibrate(first.x, first.position)
    return sae.double()


class Plain:
    """A training written out: what each step computes, in the order of the paper."""

    def __init__(self, sae: TIDE, job: Trainer) -> None:
        self.sae, self.config, self.lr = sae, job.config, job.lr
        self.silent_for = torch.zeros(N)
        own = [] if sae.modulation is None else list(sae.modulation.parameters())
        shared = [p for p in sae.parameters() if p.requires_grad and not any(p is each for each in own)]
        groups = [{"params": shared, "share": 1.0}, {"params": own, "share": self.config.modulation_lr}]
        options = {"lr": 1.0, "betas": self.config.betas, "weight_decay": self.config.weight_decay}
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], **options)

    def step(self, number: int, rows) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss, and the gradients before clipping."""
        sae, config, loss = self.sae, self.config, self.config.loss
        for group in self.optimizer.param_groups:
            rate = cosine_lr(number, config.steps, self.lr, config.warmup, config.final_lr)
            group["lr"] = rate * group["share"]
        self.optimizer.zero_grad()
        total, fired = self.loss(rows)
        total = total + loss.reg * (sae.W_enc.square().sum() + sae.W_dec.square().sum())
        total.backward()
        gradients = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
        torch.nn.utils.clip_grad_norm_(sae.parameters(), config.clip)
        self.optimizer.step()
        self.silent_for = torch.where(fired > 0, 0, self.silent_for + len(rows))
        return float(total.detach()), gradients

    def loss(self, rows) -> tuple[torch.Tensor, torch.Tensor]:
        sae, loss = self.sae, self.config.loss
        scale, shift, group, _ = sae.modulation_of(len(rows), rows.position)
        terms = naive.tide_loss(
            rows.x.double() / sae.activation_scale, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, K,
            scale=scale, shift=shift, group=group, layer_norm=sae.layer_norm, paired=True,
            weights=(loss.mse, loss.cosine, loss.temporal, loss.sparsity, loss.auxk),
            s_target=loss.s_target * K / N, delta=loss.delta,
            dead=self.silent_for >= self.config.revival.after_tokens, k_aux=loss.k_aux,
        )  # fmt: skip
        return terms.total, terms.fired


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_form_in_float64(tmp_path, case):
    """Gradients, figures and weights of several steps, with latents that die on the way."""
    options = {
        "steps": STEPS, "log_every": 1, "loss": LOSS, "progressive_k": ProgressiveK(shape="off"),
        "revival": RevivalConfig(after_tokens=ROWS, every=0), **CASES[case],
    }  # fmt: skip
    sae, other = made(case), made(case)
    job = trainer(tmp_path, sae, **options)
    plain = Plain(other, Trainer(made(case), config(**options), tmp_path, progress=False))
    found = {}
    begin = job.optimizer.update

    def watching(*args):
        found.update({name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None})
        begin(*args)

    job.optimizer.update = watching
    died = 0
    near = 1e-6 if case == "clipped" else 1e-11  # what a clipped gradient is divided by is a float32
    for number in range(STEPS):
        rows = batch(number).merged()
        total, gradients = plain.step(number, rows)
        figures = job.train_step(rows)
        job.step += 1
        died += int(job.revival.dead.sum())
        assert float(figures["loss"]) == pytest.approx(total, rel=10 * near)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(
                found[name], gradient, rtol=100 * near, atol=near * scale, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert died > 0
    for (name, p), q in zip(sae.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=100 * near, atol=100 * near, msg=name)
