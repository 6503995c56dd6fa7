"""The optimizers: Adam, or Muon with Adam for the parameters that are no hidden layer's matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffuse.config.schema import TrainConfig

STEPS = 5  # of Newton and Schulz
A, B, C = 3.4445, -4.7750, 2.0315  # Jordan et al.: the steepest at 0 that stays near 1


def build(network: nn.Module, settings: TrainConfig, dtype: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer of `settings` for all parameters of `network`.

    Args:
        dtype: of Muon's matrix products.

    Its step can be captured in a CUDA graph (`train.graph`), if its rate is a tensor by then.
    """
    if settings.optimizer == "adam":
        return torch.optim.Adam(
            network.parameters(), lr=settings.lr, fused=True, capturable=settings.graph
        )
    return Muon(network, settings.lr, dtype, capturable=settings.graph)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for hidden weights of two or more dimensions, seen as [out, rest].

    The update is Nesterov's of momentum 0.95, made orthogonal and scaled by 0.2 sqrt(max(out,
    rest)), as large as Adam's, so that both take one rate (Liu et al. 2025, section 2.2). Adam
    (0.9, 0.99) takes the rest: biases, norms, layers that touch the pixels (`network.outer`).

    torch.optim.Muon always multiplies in bfloat16, on which a CPU without such instructions would
    spend more than on the rest of the step.
    """

    def __init__(
        self, network: nn.Module, lr: float, dtype: torch.dtype, capturable: bool = False
    ) -> None:
        outer = {id(p) for layer in network.outer for p in layer.parameters()}  # type: ignore[union-attr]
        parameters = list(network.parameters())
        hidden = [p for p in parameters if p.ndim >= 2 and id(p) not in outer]
        taken = {id(p) for p in hidden}
        rest = [p for p in parameters if id(p) not in taken]
        super().__init__([{"params": hidden}, {"params": rest}], {"lr": lr})
        self.dtype = dtype
        self.momentum = [torch.zeros_like(p) for p in hidden]
        self.adam = torch.optim.Adam(rest, lr, betas=(0.9, 0.99), fused=True, capturable=capturable)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters by their gradients."""
        hidden, rest = self.param_groups
        for p, momentum in zip(hidden["params"], self.momentum, strict=True):
            momentum.lerp_(p.grad, 0.05)
            update = p.grad.lerp(momentum, 0.95).flatten(1)
            scale = 0.2 * max(update.shape) ** 0.5
            update = orthogonal(update, self.dtype).view_as(p)
            if isinstance(hidden["lr"], Tensor):
                p.addcmul_(update, hidden["lr"], value=-scale)
            else:
                p.add_(update, alpha=-hidden["lr"] * scale)
        self.adam.param_groups[0]["lr"] = rest["lr"]
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        """The momentum of the hidden weights, and Adam's state."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over both."""
        for mine, theirs in zip(self.momentum, state_dict["momentum"], strict=True):
            mine.copy_(theirs)
        self.adam.load_state_dict(state_dict["adam"])


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [m, n] with its singular values near 1, by Newton-Schulz steps in `dtype`."""
    x: Tensor = matrix.to(dtype)
    is_tall = len(x) > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    x = x.T if is_tall else x
    return x.to(matrix.dtype)
