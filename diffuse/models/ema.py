"""The moving average of the weights, with which samples are drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from diffuse.config.schema import PowerAverage, TrainConfig

Decay = Callable[[int], float]  # of the average in update n = 1, 2, ...


def warmed_up(decay: float) -> Decay:
    """`decay`, rising to it as n / (9 + n): a short run does not keep its initial weights."""
    return lambda n: min(decay, n / (9 + n)) if n > 1 else 0.0


def power(gamma: float) -> Decay:
    """(1 - 1/n)^(gamma + 1): Karras et al. 2024, section 3.1.

    The weights of step n enter in proportion to n^gamma, so that the average grows with the run and
    needs no choice for its length.
    """
    return lambda n: float((1 - 1 / n) ** (gamma + 1))


def moving_average(network: nn.Module, settings: TrainConfig) -> MovingAverage | None:
    """The average that `settings` ask for, if any."""
    match settings.ema:
        case None:
            return None
        case PowerAverage(gamma=gamma):
            return MovingAverage(network, power(gamma))
        case decay:
            return MovingAverage(network, warmed_up(decay))


class MovingAverage(AveragedModel):
    """The average of `network`'s weights; call `update_parameters` after each step."""

    def __init__(self, network: nn.Module, decay: Decay) -> None:
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take `model`'s weights into the average, and its buffers as they are.

        AveragedModel's own would copy n to the device in each step, which waits for the device: n
        stays on the CPU here, and the decay is a number.
        """
        self.n_averaged += 1
        decay = self.decay(int(self.n_averaged))
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - decay)
        for mine, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(buffer)
