"""Denoising diffusion (Ho et al. 2020) on the linear schedule; the network predicts the noise.

The report's alpha_t is the cumulative product; here it is alpha_bar, as in Ho et al. The schedule
has T + 1 values, t = 0..T, and training draws t from 1..T.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from diffuse.config.processes import DdpmConfig, Loss
from diffuse.config.section import IMAGE_SIZE
from diffuse.models.process import Network, Sampler, Sampling, per_example_loss, predict


class Ddpm:
    """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps: equation 4 of Ho et al., 1.4 of the
    report."""

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

    def losses(self, network: Network, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The loss of each example [B] between eps and its prediction: algorithm 1 of Ho et al."""
        eps_hat = network(self.degrade(x0, t, eps), t / self.T)
        return self.weight(t) * per_example_loss(self.loss, eps_hat, eps)

    def summary(self, x0: Tensor) -> Tensor:
        """Nothing [B, 1, 0]: x_T is noise."""
        return x0.new_empty(len(x0), 1, 0)

    def fully_degraded(self, summary: Tensor, eps: Tensor) -> Tensor:
        """x_T is eps [B, 1, 28, 28]."""
        return eps

    def sample(self, name: str, network: Network, x: Tensor, sampling: Sampling) -> Tensor:
        """x_0 [B, 1, 28, 28] from x_T [B, 1, 28, 28] by a sampler of SAMPLERS, below."""
        return SAMPLERS[name](network, self, x, sampling)

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


def ancestral(network: Network, process: Ddpm, x: Tensor, sampling: Sampling) -> Tensor:
    """Algorithm 2 of Ho et al. 2020 with sigma_t^2 = beta_t; always T steps."""
    beta, alpha_bar = process.beta, process.alpha_bar
    for t in range(process.T, 0, -1):
        eps_hat = predict(network, process, x, t)
        x = (x - beta[t] / (1 - alpha_bar[t]).sqrt() * eps_hat) / (1 - beta[t]).sqrt()
        if t > 1:
            x = x + beta[t].sqrt() * sampling.noise()
        sampling.on_step(process.T - t + 1, process.T)
    return x


def ddim(network: Network, process: Ddpm, x: Tensor, sampling: Sampling) -> Tensor:
    """Equation 12 of Song et al. 2021 over `steps` evenly spaced timesteps from T to 0.

    It ends at t = 0 of the schedule, where alpha_bar is 0.9999, as the ancestral sampler does.
    """
    taus = timesteps(process.T, sampling.steps)
    for k, (t, s) in enumerate(itertools.pairwise(taus)):
        now, then = process.alpha_bar[t], process.alpha_bar[s]
        x0_hat, eps_hat = _split(network, process, x, t, sampling.limit)
        sigma = sampling.eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        x = then.sqrt() * x0_hat + (1 - then - sigma**2).clamp(min=0).sqrt() * eps_hat
        if sampling.eta > 0 and s > 0:
            x = x + sigma * sampling.noise()
        sampling.on_step(k + 1, sampling.steps)
    return x


def dpm(network: Network, process: Ddpm, x: Tensor, sampling: Sampling) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. 2022: second order, one evaluation a step.

    The first step and the last are of first order, which keeps few steps stable.
    """
    alpha, sigma = process.alpha_bar.sqrt(), (1 - process.alpha_bar).sqrt()
    log_snr = alpha.log() - sigma.log()  # lambda, [T + 1]
    taus = timesteps(process.T, sampling.steps)
    before: tuple[Tensor, Tensor] | None = None  # x0_hat and h of the step before
    for k, (t, s) in enumerate(itertools.pairwise(taus)):
        x0_hat, _ = _split(network, process, x, t, sampling.limit)
        h = log_snr[s] - log_snr[t]
        blend = x0_hat
        if before is not None and s > 0:
            x0_before, h_before = before
            blend = x0_hat + h / (2 * h_before) * (x0_hat - x0_before)
        x = sigma[s] / sigma[t] * x - alpha[s] * torch.expm1(-h) * blend
        before = (x0_hat, h)
        sampling.on_step(k + 1, sampling.steps)
    return x


def timesteps(T: int, steps: int) -> list[int]:
    """`steps` + 1 evenly spaced timesteps from T down to 0."""
    return [round(T - k * T / steps) for k in range(steps + 1)]


def _split(
    network: Network, process: Ddpm, x: Tensor, t: int, limit: float | None
) -> tuple[Tensor, Tensor]:
    """x0_hat, within the limit, and eps_hat, of which x_t consists by the network's prediction."""
    alpha, sigma = process.alpha_bar[t].sqrt(), (1 - process.alpha_bar[t]).sqrt()
    eps_hat = predict(network, process, x, t)
    x0_hat = (x - sigma * eps_hat) / alpha
    if limit is not None:
        x0_hat = x0_hat.clamp(-limit, limit)
        eps_hat = (x - alpha * x0_hat) / sigma  # else x0_hat and eps_hat would not make up x_t
    return x0_hat, eps_hat


SAMPLERS: dict[str, Sampler[Ddpm]] = {"ancestral": ancestral, "ddim": ddim, "dpm": dpm}
