"""The interface of a diffusion process, and the parts that processes share.

A process is a file like ddpm.py or averaging.py: a class with the methods of `Process`, and its
samplers as functions of one signature. Its settings and the names of its samplers stand in
config/processes.py, which is read without torch; `build_process` leads from the one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.config.processes import Loss

Observer = Callable[[int, Tensor, Tensor], None]  # (t, x_t, x0_hat), both [B, 1, 28, 28]
OnStep = Callable[[int, int], None]  # (steps done, steps in all), a step being a network evaluation
Network = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, 1, 28, 28], t / T [B]) -> [B, 1, 28, 28]


@dataclass(frozen=True)
class Sampling:
    """How a sampler is carried out; it ignores the settings that are not for it."""

    noise: Callable[[], Tensor]  # the next standard normals [B, 1, 28, 28]
    steps: int = 1  # network evaluations
    eta: float = 0.0  # the amount of fresh noise: 0 none, 1 DDPM's
    limit: float | None = None  # predictions of x0 are clamped to [-limit, limit]
    on_step: OnStep = lambda done, total: None
    observe: Observer = lambda t, x, x0_hat: None  # called before each step away from x_t


class Process(Protocol):
    """A degradation of images over t = 0..T, and how a network learns to undo it."""

    T: int

    def to(self, device: torch.device | str) -> Self:
        """Move the tensors to `device`, in place."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps [n] in 1..T and noise [n, ...], which may be empty, for a training step."""

    def degrade(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t [B, 1, 28, 28] from x0 [B, 1, 28, 28] at t [B]; a process may ignore eps."""

    def losses(self, network: Network, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The loss of each example [B]; t and eps as from `draw`."""

    def estimate(self, network: Network, x: Tensor, t: int) -> Tensor:
        """The network's x0_hat [B, 1, 28, 28] from x_t [B, 1, 28, 28]."""

    def summary(self, x0: Tensor) -> Tensor:
        """Means of pixels [B, 1, K] that x_T still holds of x0; K = 0 where it is noise alone."""

    def fully_degraded(self, summary: Tensor, eps: Tensor) -> Tensor:
        """x_T [B, 1, 28, 28] of images with these summaries [B, 1, K]: new samples start there."""

    def sample(self, name: str, network: Network, x: Tensor, sampling: Sampling) -> Tensor:
        """x_0 [B, 1, 28, 28] from x_T [B, 1, 28, 28] by the sampler of this name."""

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Check a checkpoint's tensors; ValueError where they are of another process."""


P = TypeVar("P")
Sampler = Callable[[Network, P, Tensor, Sampling], Tensor]  # (network, process, x_T, sampling)


def timestep(x: Tensor, t: int) -> Tensor:
    """t for each image of x: int64 [B]."""
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def predict(network: Network, process: Process, x: Tensor, t: int) -> Tensor:
    """The network's prediction [B, 1, 28, 28] at timestep t for all of x, in float32."""
    time = torch.full((len(x),), t / process.T, device=x.device)
    return network(x, time).float()


def per_example_loss(kind: Loss, predicted: Tensor, wanted: Tensor) -> Tensor:
    """The mean over pixels for each example [B], in float32 also under autocast."""
    predicted = predicted.float()
    match kind:
        case "mse":
            loss = F.mse_loss(predicted, wanted, reduction="none")
        case "l1":
            loss = F.l1_loss(predicted, wanted, reduction="none")
        case "huber":
            loss = F.huber_loss(predicted, wanted, reduction="none")
    return loss.mean(dim=(1, 2, 3))
