"""The moving average of the weights, which is what samples are drawn with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """Average `network`'s weights with `decay`, call `.update_parameters(network)` after each step.

    The decay rises as min(decay, (1 + n) / (10 + n)) after n updates, so that a short run does not
    keep its initial weights. Everything stays on the device: no synchronisation.
    """

    def update(
        averaged: tuple[Tensor, ...] | list[Tensor],
        current: tuple[Tensor, ...] | list[Tensor],
        n: Tensor | int,
    ) -> None:
        n = torch.as_tensor(n, dtype=torch.float32, device=averaged[0].device)
        weight = 1 - torch.clamp((1 + n) / (10 + n), max=decay)
        change = torch._foreach_sub(list(current), list(averaged))
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(list(averaged), change)

    return AveragedModel(network, multi_avg_fn=update)
