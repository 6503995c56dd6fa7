"""The moving average of the weights, with which samples are drawn."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Average `network`'s weights with `decay`; call `update_parameters` after each step.

    The decay rises as min(decay, (1 + n) / (10 + n)) after n updates, so that a short run does not
    keep its initial weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take `model`'s weights into the average, and its buffers as they are.

        AveragedModel's own would copy n to the device in each step, which waits for the device: n
        stays on the CPU here, and the decay is a number.
        """
        n = int(self.n_averaged)
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - decay)
        for mine, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(buffer)
        self.n_averaged += 1
