"""The latent ODE (Chen et al. 2018, §5): RNN encoder run backwards, ODE, decoder, ELBO."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ._fields import MLP
from ._neural_ode import NeuralODE


@dataclasses.dataclass(eq=False)
class Posterior:
    """What `LatentODE.forward` returns.

    Attributes:
        decoded: `[m, B, d]`, the trajectory decoded at every time.
        mean, log_variance: `[B, latent]`, of z0.
        states: `[m, B, latent]`.
    """

    decoded: Tensor
    mean: Tensor
    log_variance: Tensor
    states: Tensor


class LatentODE(nn.Module):
    """Encoder, latent dynamics and decoder for irregularly sampled series.

    Args:
        observed: d, entries of an observation.
        latent: entries of z.
        hidden: width of the encoder, the field and the decoder.
        noise: standard deviation of the observation noise.
        block: arguments of `NeuralODE`.
    """

    def __init__(
        self, observed: int = 2, latent: int = 4, hidden: int = 20, noise: float = 0.3, **block: Any
    ):
        super().__init__()
        self.encoder = nn.GRU(observed + 1, hidden)
        self.to_posterior = nn.Linear(hidden, 2 * latent)
        self.dynamics = NeuralODE(MLP([latent, hidden, hidden, latent], nn.ELU), **block)
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, observed)
        )
        self.noise = noise

    def encode(self, ts: Tensor, xs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `[B, latent]` of z0 from observations `[m, B, d]` at `ts` `[m]`."""
        gaps = torch.diff(ts, prepend=ts[:1]).to(xs.dtype).view(-1, 1, 1)
        series = torch.cat([xs, gaps.expand(-1, xs.shape[1], 1)], dim=2).flip(0)
        _, last = self.encoder(series)
        mean, log_variance = self.to_posterior(last[0]).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, ts: Tensor, xs: Tensor, at: Tensor | None = None) -> Posterior:
        """Encode `xs` `[m, B, d]` seen at `ts`, integrate, decode at `at` (default: `ts`)."""
        mean, log_variance = self.encode(ts, xs)
        z0 = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        states = self.dynamics(z0, ts if at is None else at)
        return Posterior(self.decoder(states), mean, log_variance, states)

    def elbo(self, posterior: Posterior, xs: Tensor, kl_weight: float = 1.0) -> Tensor:
        """Evidence lower bound in nats, a mean over the batch."""
        scaled = (xs - posterior.decoded) / self.noise
        constant = torch.log(torch.tensor(2 * torch.pi)) + 2 * torch.log(torch.tensor(self.noise))
        likelihood = -0.5 * (scaled.square() + constant).sum(dim=(0, 2))
        mean, log_variance = posterior.mean, posterior.log_variance
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (likelihood - kl_weight * kl).mean()
