"""Denoising diffusion (Ho et al. 2020) on the linear schedule.

The report's alpha_t is the cumulative product; here it is alpha_bar, as in Ho et al. The schedule
has T + 1 values, t = 0..T, and training draws t from 1..T.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from diffuse.config.processes import DdpmConfig, Prediction
from diffuse.config.section import IMAGE_SIZE
from diffuse.models.process import Network, Sampler, Sampling, per_example_loss, predict
from diffuse.runtime.rng import normal

PLAIN = DdpmConfig(kind="ddpm")


class Ddpm:
    """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps: equation 4 of Ho et al., 1.4 of the
    report."""

    def __init__(self, beta: Tensor, config: DdpmConfig = PLAIN) -> None:
        """
        Args:
            beta: [T + 1], at t = 0..T; computed with in float64, kept in float32.
            config: all but the schedule.
        """
        self.config = config
        self.T = len(beta) - 1
        beta = beta.double()
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        self.beta = beta.float()  # [T + 1]
        self.alpha_bar = alpha_bar.float()  # [T + 1]
        p = torch.full((self.T,), 1 / self.T, dtype=torch.float64)  # of t = 1..T in training
        if config.log_sigma is not None:
            p = log_density(alpha_bar, *config.log_sigma)[1:].softmax(0)
        self.cdf = p.cumsum(0)  # [T]
        self.weights = torch.ones(self.T + 1)
        if config.weight == "eps":
            weights = eps_error(config.prediction, alpha_bar)
            self.weights = (weights / (weights[1:] @ p)).float()
        elif config.min_snr is not None:
            snr = self.alpha_bar / (1 - self.alpha_bar)
            self.weights = snr.clamp(max=config.min_snr) / snr
            self.weights = self.weights * eps_error(config.prediction, self.alpha_bar)

    @classmethod
    def from_config(cls, config: DdpmConfig) -> Ddpm:
        """beta_t = (beta_2 - beta_1) t / T + beta_1 for t = 0..T."""
        t = torch.arange(config.timesteps + 1, dtype=torch.float64)
        beta = (config.beta_2 - config.beta_1) * t / config.timesteps + config.beta_1
        return cls(beta, config)

    def to(self, device: torch.device | str) -> Ddpm:
        """Move the schedule to `device`, in place."""
        for name in ("beta", "alpha_bar", "weights", "cdf"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps [n] in 1..T and noise [n, 1, 28, 28], on the generator's device.

        Where they are not uniform, one timestep falls into each n-th part of their distribution,
        in ascending order: a batch sees all noise levels (as in Kingma et al. 2021).
        """
        device = generator.device
        if self.config.log_sigma is None:
            t = torch.randint(1, self.T + 1, (n,), generator=generator, device=device)
        else:
            u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
            u = (torch.arange(n, device=device) + u) / n
            t = (torch.searchsorted(self.cdf, u, right=True) + 1).clamp(max=self.T)
        return t, normal((n, 1, IMAGE_SIZE, IMAGE_SIZE), generator)

    def degrade(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t [B, 1, 28, 28] from x0 and eps [B, 1, 28, 28] at t [B]: equation 4."""
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    def losses(self, network: Network, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The weighted loss of each example [B]: algorithm 1 of Ho et al."""
        output = network(self.degrade(x0, t, eps), t / self.T)
        match self.config.prediction:
            case "eps":
                wanted = eps
            case "x0":
                wanted = x0
            case "v":
                alpha_bar = self.alpha_bar[t][:, None, None, None]
                wanted = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0
        return self.weights[t] * per_example_loss(self.config.loss, output, wanted)

    def estimate(self, network: Network, x: Tensor, t: int) -> Tensor:
        """The network's x0_hat [B, 1, 28, 28] from x_t [B, 1, 28, 28]."""
        return _split(network, self, x, t, None)[0]

    def summary(self, x0: Tensor) -> Tensor:
        """Nothing [B, 1, 0]: x_T is noise."""
        return x0.new_empty(len(x0), 1, 0)

    def fully_degraded(self, summary: Tensor, eps: Tensor) -> Tensor:
        """x_T is eps [B, 1, 28, 28]."""
        return eps

    def sample(self, name: str, network: Network, x: Tensor, sampling: Sampling) -> Tensor:
        """x_0 [B, 1, 28, 28] from x_T [B, 1, 28, 28] by a sampler of SAMPLERS, below."""
        return SAMPLERS[name](network, self, x, sampling)

    def state_dict(self) -> dict[str, Tensor]:
        """The schedule."""
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Check that a checkpoint has this schedule. Raises ValueError where it has another."""
        if not torch.equal(state["beta"], self.beta.cpu()):
            raise ValueError("its noise schedule is another one")


def log_density(alpha_bar: Tensor, mean: float, deviation: float) -> Tensor:
    """ln of N(ln sigma; mean, deviation^2) d ln(sigma) / dt at t = 0..T [T + 1], less a constant.

    sigma = sqrt((1 - alpha_bar) / alpha_bar) is the noise beside an image of scale 1, whose
    logarithm Karras et al. 2022, table 1, draw from a normal distribution.
    """
    log_sigma = (torch.log1p(-alpha_bar) - alpha_bar.log()) / 2
    (slope,) = torch.gradient(log_sigma)
    return slope.log() - ((log_sigma - mean) / deviation) ** 2 / 2


def eps_error(prediction: Prediction, alpha_bar: Tensor) -> Tensor:
    """The squared error of eps_hat for one of 1 in the network's output, at each alpha_bar."""
    match prediction:
        case "eps":
            return torch.ones_like(alpha_bar)
        case "x0":
            return alpha_bar / (1 - alpha_bar)
        case "v":
            return alpha_bar


def ancestral(network: Network, process: Ddpm, x: Tensor, sampling: Sampling) -> Tensor:
    """Algorithm 2 of Ho et al. 2020 with sigma_t^2 = beta_t; always T steps."""
    beta, alpha_bar = process.beta, process.alpha_bar
    for t in range(process.T, 0, -1):
        x0_hat, eps_hat = _split(network, process, x, t, None)
        sampling.observe(t, x, x0_hat)
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
        sampling.observe(t, x, x0_hat)
        sigma = sampling.eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        x = then.sqrt() * x0_hat + (1 - then - sigma**2).clamp(min=0).sqrt() * eps_hat
        if sampling.eta > 0 and s > 0:
            x = x + sigma * sampling.noise()
        sampling.on_step(k + 1, sampling.steps)
    return x


def dpm(network: Network, process: Ddpm, x: Tensor, sampling: Sampling) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. 2022: second order, one evaluation a step.

    The first step and the last are of first order, which keeps few steps stable. With eta it is
    SDE-DPM-Solver++(2M) (their section 6; eta = 1): more of x_t is dropped, and fresh noise fills
    up the variance. It ends with the last prediction of x0.
    """
    eta = sampling.eta
    alpha, sigma = process.alpha_bar.sqrt(), (1 - process.alpha_bar).sqrt()
    log_snr = alpha.log() - sigma.log()  # lambda, [T + 1]
    taus = timesteps(process.T, sampling.steps)
    before: tuple[Tensor, Tensor] | None = None  # x0_hat and h of the step before
    for k, (t, s) in enumerate(itertools.pairwise(taus)):
        x0_hat, _ = _split(network, process, x, t, sampling.limit)
        sampling.observe(t, x, x0_hat)
        h = log_snr[s] - log_snr[t]
        blend = x0_hat
        if before is not None and s > 0:
            x0_before, h_before = before
            blend = x0_hat + h / (2 * h_before) * (x0_hat - x0_before)
        if eta and s == 0:
            x = x0_hat
        else:
            kept = sigma[s] / sigma[t] * torch.exp(-eta * h)
            x = kept * x - alpha[s] * torch.expm1(-(1 + eta) * h) * blend
            if eta:
                x = x + sigma[s] * (-torch.expm1(-2 * eta * h)).sqrt() * sampling.noise()
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
    output = predict(network, process, x, t)
    match process.config.prediction:
        case "eps":
            x0_hat, eps_hat = (x - sigma * output) / alpha, output
        case "x0":
            x0_hat, eps_hat = output, (x - alpha * output) / sigma
        case "v":
            x0_hat, eps_hat = alpha * x - sigma * output, sigma * x + alpha * output
    if limit is not None:
        x0_hat = x0_hat.clamp(-limit, limit)
        eps_hat = (x - alpha * x0_hat) / sigma  # else x0_hat and eps_hat would not make up x_t
    return x0_hat, eps_hat


SAMPLERS: dict[str, Sampler[Ddpm]] = {"ancestral": ancestral, "ddim": ddim, "dpm": dpm}
