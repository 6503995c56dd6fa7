"""The optimizers: Adam, or Muon with Adam for the parameters that are no hidden layer's matrix.

They are no torch.optim.Optimizer: making one loads torch's compiler, a third of the time in which a
training on one rank starts. Each has the rate `lr`, a number, or a tensor that a CUDA graph reads,
and `param_groups` as torch.amp.GradScaler wants them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from diffuse.config.schema import TrainConfig
from diffuse.runtime.device import Precision

STEPS = 5  # of Newton and Schulz
A, B, C = 3.4445, -4.7750, 2.0315  # Jordan et al.: the steepest at 0 that stays near 1


class Optimizer(Protocol):
    """An update of parameters by their gradients, with its state."""

    lr: float | Tensor
    param_groups: list[dict[str, Any]]

    def step(self) -> None:
        """Update all parameters; none may lack its gradient."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, for a checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state. Raises ValueError where it is of other parameters."""


def build(network: nn.Module, settings: TrainConfig, precision: Precision) -> Optimizer:
    """The optimizer of `settings` for all parameters of `network`."""
    if settings.optimizer == "adam":
        return Adam(network.parameters(), settings.lr)
    # fp16 has too small a range for Newton-Schulz
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Muon(network, settings.lr, dtype)


class Adam:
    """Adam (Kingma and Ba 2015): torch.optim.Adam's fused kernel, and the form of its state.

    The kernel takes gradients in the layout of their parameters, as autograd makes them.
    """

    _step_supports_amp_scaling = True  # a GradScaler sets the next two, for its call of `step` only
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.lr, self.betas, self.eps = lr, betas, eps
        self.parameters = list(parameters)
        self.param_groups = [{"params": self.parameters}]
        self.exp_avgs = [torch.zeros_like(p) for p in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters by their gradients; none where a GradScaler found infinite ones."""
        beta1, beta2 = self.betas
        grads = [p.grad for p in self.parameters if p.grad is not None]
        assert len(grads) == len(self.parameters), "a parameter has no gradient"
        adam(
            list[Tensor](self.parameters),
            grads,
            self.exp_avgs,
            self.exp_avg_sqs,
            [],
            self.steps,
            fused=True,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=self.lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """The moments and the number of steps of each parameter."""
        moments = zip(self.steps, self.exp_avgs, self.exp_avg_sqs, strict=True)
        return {
            "state": {
                k: {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
                for k, (step, exp_avg, exp_avg_sq) in enumerate(moments)
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them over. Without moments, as torch's are before the first step, they are zero."""
        moments = state_dict["state"]
        if not moments:
            for moment in (*self.steps, *self.exp_avgs, *self.exp_avg_sqs):
                moment.zero_()
            return
        if [m["exp_avg"].shape for m in moments.values()] != [p.shape for p in self.parameters]:
            raise ValueError("the optimizer's moments have other shapes than the parameters")
        for k, state in moments.items():
            self.steps[k].copy_(state["step"])
            self.exp_avgs[k].copy_(state["exp_avg"])
            self.exp_avg_sqs[k].copy_(state["exp_avg_sq"])


class Muon:
    """Muon (Jordan et al. 2024) for the weights of hidden layers, seen as matrices [out, rest].

    The update is Nesterov's of momentum 0.95, made orthogonal and scaled by 0.2 sqrt(max(out,
    rest)), as large as Adam's, so that both take one rate (Liu et al. 2025, section 2.2). Adam
    (0.9, 0.99) takes the rest: biases, norms, layers that touch the pixels (`network.outer`).

    torch.optim.Muon always multiplies in bfloat16, on which a CPU without such instructions would
    spend more than on the rest of the step.
    """

    def __init__(self, network: nn.Module, lr: float | Tensor, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: of the matrix products.
        """
        layers = (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        outer = {id(p) for layer in network.outer for p in layer.parameters()}  # type: ignore[union-attr]
        matrices = {id(layer.weight) for layer in layers} - outer
        self.hidden = [p for p in network.parameters() if id(p) in matrices]
        rest = [p for p in network.parameters() if id(p) not in matrices]
        self.param_groups = [{"params": self.hidden}, {"params": rest}]
        self.lr = lr
        self.dtype = dtype
        self.momentum = [torch.zeros_like(p) for p in self.hidden]
        self.adam = Adam(rest, lr, betas=(0.9, 0.99))
        # A GPU takes longer to launch a product than to compute it; on a CPU padding costs more.
        each = range(len(self.hidden))
        on_gpu = any(p.is_cuda for p in self.hidden)
        self.batches = [slice(None)] if on_gpu else [slice(k, k + 1) for k in each]

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters by their gradients."""
        grads = [p.grad for p in self.hidden if p.grad is not None]
        assert len(grads) == len(self.hidden), "a parameter has no gradient"
        torch._foreach_lerp_(self.momentum, grads, 0.05)
        updates = [x.flatten(1) for x in torch._foreach_lerp(grads, self.momentum, 0.95)]
        for batch in self.batches:
            made_orthogonal = orthogonal(updates[batch], self.dtype)
            for p, update in zip(self.hidden[batch], made_orthogonal, strict=True):
                scale = 0.2 * max(update.shape) ** 0.5
                if isinstance(self.lr, Tensor):
                    p.addcmul_(update.view_as(p), self.lr, value=-scale)
                else:
                    p.add_(update.view_as(p), alpha=-self.lr * scale)
        self.adam.lr = self.lr
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        """The momentum of the hidden weights, and Adam's state."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over both."""
        for mine, theirs in zip(self.momentum, state_dict["momentum"], strict=True):
            mine.copy_(theirs)
        self.adam.load_state_dict(state_dict["adam"])


def orthogonal(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each matrix [m, n] with its singular values near 1, by Newton-Schulz steps in `dtype`.

    All in one batch, padded with zeros, which stay zeros.
    """
    wide = [x if len(x) <= x.shape[1] else x.T for x in matrices]
    rows, columns = (max(x.shape[k] for x in wide) for k in (0, 1))
    batch = wide[0].new_zeros(len(wide), rows, columns, dtype=dtype)
    for place, x in zip(batch, wide, strict=True):
        place[: len(x), : x.shape[1]] = x
    batch = batch / batch.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = batch @ batch.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        batch = torch.baddbmm(batch, polynomial, batch, beta=A)
    results = []
    for result, x in zip(batch.to(matrices[0].dtype), matrices, strict=True):
        m, n = x.shape
        results.append(result[:m, :n] if m <= n else result[:n, :m].T)
    return results
