"""Denoising diffusion (Ho et al. 2020) on the linear schedule, with the noise as what is predicted.

The report's alpha_t is the cumulative product; here it is alpha_bar, as in Ho et al. The schedule
has T + 1 values, t = 0..T, and training draws t from 1..T.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.config.schema import IMAGE_SIZE, DdpmConfig, Loss

Network = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, 1, 28, 28], t / T [B]) -> [B, 1, 28, 28]


class Ddpm:
    """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps: equation 4 of Ho et al., 1.4 of the
    report."""

    kind = "ddpm"

    def __init__(self, beta: Tensor, loss: Loss = "mse", min_snr: float | None = None) -> None:
        """
        Args:
            beta: [T + 1], at t = 0..T; computed with in float64, kept in float32.
            min_snr: gamma of Hang et al. 2023; None weights all timesteps alike.
        """
        self.loss, self.min_snr = loss, min_snr
        self.T = len(beta) - 1
        beta = beta.double()
        self.beta = beta.float()  # [T + 1]
        self.alpha_bar = torch.cumprod(1 - beta, dim=0).float()  # [T + 1]

    @classmethod
    def from_config(cls, config: DdpmConfig) -> Ddpm:
        """beta_t = (beta_2 - beta_1) t / T + beta_1 for t = 0..T."""
        t = torch.arange(config.timesteps + 1, dtype=torch.float64)
        beta = (config.beta_2 - config.beta_1) * t / config.timesteps + config.beta_1
        return cls(beta, config.loss, config.min_snr)

    def to(self, device: torch.device | str) -> Ddpm:
        """Move the schedule to `device`, in place."""
        self.beta = self.beta.to(device)
        self.alpha_bar = self.alpha_bar.to(device)
        return self

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps [n] in 1..T and noise [n, 1, 28, 28], on the generator's device."""
        device = generator.device
        t = torch.randint(1, self.T + 1, (n,), generator=generator, device=device)
        eps = torch.randn(n, 1, IMAGE_SIZE, IMAGE_SIZE, generator=generator, device=device)
        return t, eps

    def degrade(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t [B, 1, 28, 28] from x0 and eps [B, 1, 28, 28] at t [B]: equation 4."""
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    def losses(self, network: Network, x0: Tensor, t: Tensor, eps: Tensor | None) -> Tensor:
        """The loss of each example [B] between eps and its prediction: algorithm 1 of Ho et al."""
        assert eps is not None
        eps_hat = network(self.degrade(x0, t, eps), t / self.T)
        return self.weight(t) * per_example_loss(self.loss, eps_hat, eps)

    def weight(self, t: Tensor) -> Tensor:
        """min(SNR, gamma) / SNR at t [B], or ones: Hang et al. 2023, section 3.4, for eps.

        It takes weight from the nearly clean images, whose last noise costs a network most of its
        effort and shows least.
        """
        if self.min_snr is None:
            return torch.ones_like(t, dtype=torch.float32)
        alpha_bar = self.alpha_bar[t]
        snr = alpha_bar / (1 - alpha_bar)  # [B]
        return snr.clamp(max=self.min_snr) / snr

    def state_dict(self) -> dict[str, Tensor]:
        """The schedule."""
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Check that a checkpoint has this schedule. Raises ValueError where it has another."""
        if not torch.equal(state["beta"], self.beta.cpu()):
            raise ValueError("its noise schedule is another one")


def per_example_loss(kind: Loss, predicted: Tensor, wanted: Tensor) -> Tensor:
    """The mean over pixels for each example [B], in float32 whatever the network computed in."""
    predicted = predicted.float()
    match kind:
        case "mse":
            loss = F.mse_loss(predicted, wanted, reduction="none")
        case "l1":
            loss = F.l1_loss(predicted, wanted, reduction="none")
        case "huber":
            loss = F.huber_loss(predicted, wanted, reduction="none")
    return loss.mean(dim=(1, 2, 3))
