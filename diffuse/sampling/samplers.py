"""Samplers: pure functions of one signature, from x_T [B, 1, 28, 28] to x_0 [B, 1, 28, 28].

    sampler(network, process, x_T, steps=..., eta=..., limit=..., noise=..., on_step=...)

`steps` are the network's evaluations, `eta` is DDIM's share of fresh noise, `limit` is where each
prediction of x0 is cut off (None: nowhere), `noise()` gives the next standard normals, and
`on_step(done, steps)` is told of progress. A sampler that has no use for one of them ignores it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.models.averaging import Averaging
from diffuse.models.ddpm import Ddpm, Network

Process = Ddpm | Averaging
Noise = Callable[[], Tensor]
OnStep = Callable[[int, int], None]


class Sampler(Protocol):
    """The signature that all samplers share."""

    def __call__(
        self,
        network: Network,
        process: Process,
        x: Tensor,
        *,
        steps: int,
        eta: float,
        limit: float | None,
        noise: Noise,
        on_step: OnStep,
    ) -> Tensor: ...


@torch.inference_mode()
def ancestral(
    network: Network,
    process: Process,
    x: Tensor,
    *,
    steps: int,
    eta: float,
    limit: float | None,
    noise: Noise,
    on_step: OnStep,
) -> Tensor:
    """Algorithm 2 of Ho et al. 2020 with sigma_t^2 = beta_t; always T steps."""
    assert isinstance(process, Ddpm)
    beta, alpha_bar = process.beta, process.alpha_bar
    for t in range(process.T, 0, -1):
        eps_hat = _predict(network, process, x, t)
        x = (x - beta[t] / (1 - alpha_bar[t]).sqrt() * eps_hat) / (1 - beta[t]).sqrt()
        if t > 1:
            x = x + beta[t].sqrt() * noise()
        on_step(process.T - t + 1, process.T)
    return x


@torch.inference_mode()
def ddim(
    network: Network,
    process: Process,
    x: Tensor,
    *,
    steps: int,
    eta: float,
    limit: float | None,
    noise: Noise,
    on_step: OnStep,
) -> Tensor:
    """Equation 12 of Song et al. 2021 over `steps` evenly spaced timesteps from T to 0.

    It ends at t = 0 of the schedule, where alpha_bar is 0.9999, as the ancestral sampler does.
    """
    assert isinstance(process, Ddpm)
    taus = timesteps(process.T, steps)
    for k, (t, s) in enumerate(itertools.pairwise(taus)):
        now, then = process.alpha_bar[t], process.alpha_bar[s]
        x0_hat, eps_hat = _split(network, process, x, t, limit)
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        x = then.sqrt() * x0_hat + (1 - then - sigma**2).clamp(min=0).sqrt() * eps_hat
        if eta > 0 and s > 0:
            x = x + sigma * noise()
        on_step(k + 1, steps)
    return x


@torch.inference_mode()
def dpm(
    network: Network,
    process: Process,
    x: Tensor,
    *,
    steps: int,
    eta: float,
    limit: float | None,
    noise: Noise,
    on_step: OnStep,
) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. 2022: second order, one evaluation a step.

    The first step and the last are of first order, which keeps few steps stable.
    """
    assert isinstance(process, Ddpm)
    alpha, sigma = process.alpha_bar.sqrt(), (1 - process.alpha_bar).sqrt()
    log_snr = alpha.log() - sigma.log()  # lambda, [T + 1]
    taus = timesteps(process.T, steps)
    before: tuple[Tensor, Tensor] | None = None  # x0_hat and h of the step before
    for k, (t, s) in enumerate(itertools.pairwise(taus)):
        x0_hat, _ = _split(network, process, x, t, limit)
        h = log_snr[s] - log_snr[t]
        blend = x0_hat
        if before is not None and s > 0:
            x0_before, h_before = before
            blend = x0_hat + h / (2 * h_before) * (x0_hat - x0_before)
        x = sigma[s] / sigma[t] * x - alpha[s] * torch.expm1(-h) * blend
        before = (x0_hat, h)
        on_step(k + 1, steps)
    return x


@torch.inference_mode()
def algorithm1(
    network: Network,
    process: Process,
    x: Tensor,
    *,
    steps: int,
    eta: float,
    limit: float | None,
    noise: Noise,
    on_step: OnStep,
) -> Tensor:
    """Algorithm 1 of Bansal et al. 2022: restore, degrade one step less, repeat."""
    assert isinstance(process, Averaging)
    for s in range(process.T, 0, -1):
        x0_hat = _predict(network, process, x, s)
        x = process.degrade(x0_hat, _fill(x, s - 1))
        on_step(process.T - s + 1, process.T)
    return x


@torch.inference_mode()
def algorithm2(
    network: Network,
    process: Process,
    x: Tensor,
    *,
    steps: int,
    eta: float,
    limit: float | None,
    noise: Noise,
    on_step: OnStep,
) -> Tensor:
    """Algorithm 2 of Bansal et al. 2022: x_{s-1} = x_s - D(x0_hat, s) + D(x0_hat, s - 1)."""
    assert isinstance(process, Averaging)
    for s in range(process.T, 0, -1):
        x0_hat = _predict(network, process, x, s)
        x = x - process.degrade(x0_hat, _fill(x, s)) + process.degrade(x0_hat, _fill(x, s - 1))
        on_step(process.T - s + 1, process.T)
    return x


@torch.inference_mode()
def direct(
    network: Network,
    process: Process,
    x: Tensor,
    *,
    steps: int,
    eta: float,
    limit: float | None,
    noise: Noise,
    on_step: OnStep,
) -> Tensor:
    """The prediction of x0 from x_T in one evaluation."""
    x0_hat = _predict(network, process, x, process.T)
    on_step(1, 1)
    return x0_hat


SAMPLERS: dict[str, Sampler] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm": dpm,
    "algorithm1": algorithm1,
    "algorithm2": algorithm2,
    "direct": direct,
    # algorithm 2 from line means that are drawn, not taken from an image
    "unconditional": algorithm2,
}


def run(
    spec: SamplerSpec,
    network: Network,
    process: Process,
    x: Tensor,
    noise: Noise,
    amplitude: float,
    on_step: OnStep = lambda done, steps: None,
) -> Tensor:
    """x_T [B, 1, 28, 28] to x_0 [B, 1, 28, 28]; images lie in [-amplitude, amplitude]."""
    return SAMPLERS[spec.name](
        network,
        process,
        x,
        steps=spec.steps,
        eta=spec.eta,
        limit=amplitude if spec.clip else None,
        noise=noise,
        on_step=on_step,
    )


def timesteps(T: int, steps: int) -> list[int]:
    """`steps` + 1 evenly spaced timesteps from T down to 0."""
    return [round(T - k * T / steps) for k in range(steps + 1)]


def _split(
    network: Network, process: Ddpm, x: Tensor, t: int, limit: float | None
) -> tuple[Tensor, Tensor]:
    """What x_t is made of by the network's prediction: x0_hat within the limit, and eps_hat."""
    alpha, sigma = process.alpha_bar[t].sqrt(), (1 - process.alpha_bar[t]).sqrt()
    eps_hat = _predict(network, process, x, t)
    x0_hat = (x - sigma * eps_hat) / alpha
    if limit is not None:
        x0_hat = x0_hat.clamp(-limit, limit)
        eps_hat = (x - alpha * x0_hat) / sigma  # else x0_hat and eps_hat would not make up x_t
    return x0_hat, eps_hat


def _predict(network: Network, process: Process, x: Tensor, t: int) -> Tensor:
    """The network's prediction at timestep t for all of x, in float32."""
    time = torch.full((len(x),), t / process.T, device=x.device)
    return network(x, time).float()


def _fill(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)
