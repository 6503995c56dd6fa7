"""Cold diffusion (Bansal et al. 2022) by averaging rows or columns: section 2.1 of the report.

At step t the first t entries of an order, each one line or a group of adjacent lines, are replaced
by their mean. After T steps every line is flat.

With noise, which is not in the report, D(x0 + sigma_t z, t) takes the place of D(x0, t): the lines
not yet averaged carry normal noise z whose mean over each entry is 0, so that the means, which are
all that is left of x0 at T, stay exact. Bansal et al. add noise to break symmetry (section 5.2):
without it each step of a sampler commits to the mean of all images that it could lead to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffuse.config.processes import AveragingConfig, Loss, Orientation
from diffuse.config.section import IMAGE_SIZE
from diffuse.models.process import (
    Network,
    Sampler,
    Sampling,
    per_example_loss,
    predict,
    timestep,
)
from diffuse.runtime.rng import Stream, generator, normal


class Averaging:
    """The degradation D(x0, t), whose inverse the network learns as a prediction of x0."""

    def __init__(
        self, orientation: Orientation, order: Tensor, loss: Loss = "mse", noise: float = 0.0
    ) -> None:
        """
        Args:
            order: int64 [T, group], the line numbers (from 0) that step t = 1..T averages.
            noise: sigma_T, in the images' units; sigma_t = noise t / T.

        Raises ValueError where `order` does not hold every line once.
        """
        if order.ndim != 2 or not torch.equal(order.flatten().sort()[0], torch.arange(IMAGE_SIZE)):
            raise ValueError(f"an averaging order must hold each of {IMAGE_SIZE} lines once")
        self.orientation = orientation
        self.loss = loss
        self.noise = noise
        self.order = order
        self.T = len(order)
        # mask[t, line]: whether the line is averaged at t
        self.mask = torch.zeros(self.T + 1, IMAGE_SIZE, dtype=torch.bool)
        for t in range(1, self.T + 1):
            self.mask[t] = self.mask[t - 1]
            self.mask[t, order[t - 1]] = True
        # step_of[line]: at which entry of the order the line is, to spread the entries' means
        self.step_of = torch.empty(IMAGE_SIZE, dtype=torch.int64)
        self.step_of[order] = torch.arange(self.T)[:, None]

    @classmethod
    def from_config(cls, config: AveragingConfig, seed: int, amplitude: float) -> Averaging:
        """The order that `config` names; a random one follows from the seed."""
        groups = torch.arange(IMAGE_SIZE).reshape(config.T, config.group)  # [T, group]
        order = group_order(config.order, config.T, seed)
        return cls(config.orientation, groups[order], config.loss, config.noise * amplitude)

    def to(self, device: torch.device | str) -> Averaging:
        """Move the masks to `device`, in place."""
        self.order = self.order.to(device)
        self.mask = self.mask.to(device)
        self.step_of = self.step_of.to(device)
        return self

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps [n] in 1..T and noise [n, 1, 28, 28], on the generator's device.

        Without noise [n, 0].
        """
        t = torch.randint(1, self.T + 1, (n,), generator=generator, device=generator.device)
        shape = (1, IMAGE_SIZE, IMAGE_SIZE) if self.noise else (0,)
        return t, normal((n, *shape), generator)

    def degrade(self, x0: Tensor, t: Tensor, eps: Tensor | None = None) -> Tensor:
        """D(x0 + sigma_t z, t) [B, 1, 28, 28] for x0 [B, 1, 28, 28] at t [B].

        Args:
            eps: z before its means are taken out; None, or a process without noise: D(x0, t).
        """
        if self.noise and eps is not None:
            sigma = self.noise * t[:, None, None, None] / self.T
            x0 = x0 + sigma * self.centred(eps)
        x = x0 if self.orientation == "row" else x0.transpose(2, 3)
        means = self.summary(x0)[..., self.step_of]  # [B, 1, 28]
        flat = torch.where(self.mask[t][:, None, :, None], means[..., None], x)
        return flat if self.orientation == "row" else flat.transpose(2, 3)

    def summary(self, x0: Tensor) -> Tensor:
        """The mean of each entry of the order [B, 1, T]: all that D(x0, T) still holds of x0."""
        lines = x0.mean(dim=3 if self.orientation == "row" else 2)  # [B, 1, 28]
        return lines[..., self.order].mean(dim=-1)

    def fully_degraded(self, summary: Tensor, eps: Tensor | None = None) -> Tensor:
        """x_T [B, 1, 28, 28] from the means [B, 1, T] of the entries of the order."""
        flat = summary[..., self.step_of][..., None].expand(-1, -1, -1, IMAGE_SIZE)
        return flat if self.orientation == "row" else flat.transpose(2, 3)

    def estimate(self, network: Network, x: Tensor, t: int) -> Tensor:
        """The network's x0_hat [B, 1, 28, 28] from x_t [B, 1, 28, 28]."""
        return predict(network, self, x, t)

    def centred(self, x: Tensor) -> Tensor:
        """x [B, 1, 28, 28] less the mean of each entry of the order."""
        return x - self.fully_degraded(self.summary(x))

    def losses(self, network: Network, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The loss of each example [B] between x0 and its prediction from x_t."""
        x0_hat = network(self.degrade(x0, t, eps), t / self.T)
        return per_example_loss(self.loss, x0_hat, x0)

    def sample(self, name: str, network: Network, x: Tensor, sampling: Sampling) -> Tensor:
        """x_0 [B, 1, 28, 28] from x_T [B, 1, 28, 28] by a sampler of SAMPLERS, below."""
        return SAMPLERS[name](network, self, x, sampling)

    def state_dict(self) -> dict[str, Tensor]:
        """The order, which a random one's reader cannot know otherwise."""
        return {"order": self.order}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Check that a checkpoint has this order. Raises ValueError where it has another."""
        if not torch.equal(state["order"], self.order.cpu()):
            raise ValueError("its averaging order is another one")


def group_order(name: str, n: int, seed: int) -> Tensor:
    """A permutation of n groups: random, inside-out (13, 14, 12, ..) or outside-in (0, 27, ..)."""
    if name == "random":
        return torch.randperm(n, generator=generator(seed, Stream.AVERAGING_ORDER))
    ends = [k // 2 if k % 2 == 0 else n - 1 - k // 2 for k in range(n)]  # 0, n-1, 1, n-2, ...
    if name == "outside-in":
        return torch.tensor(ends)
    middle = (n - 1) // 2
    # the nearest to the middle first, the lower one of two equals before the upper
    return torch.tensor(sorted(range(n), key=lambda k: (abs(2 * k - (n - 1)), k > middle)))


def algorithm1(network: Network, process: Averaging, x: Tensor, sampling: Sampling) -> Tensor:
    """Algorithm 1 of Bansal et al. 2022: restore, degrade one step less, repeat."""
    for s in range(process.T, 0, -1):
        x0_hat = predict(network, process, x, s)
        sampling.observe(s, x, x0_hat)
        x = process.degrade(x0_hat, timestep(x, s - 1))
        sampling.on_step(process.T - s + 1, process.T)
    return x


def algorithm2(network: Network, process: Averaging, x: Tensor, sampling: Sampling) -> Tensor:
    """Algorithm 2 of Bansal et al. 2022: x_{s-1} = x_s - D(x0_hat, s) + D(x0_hat, s - 1)."""
    for s in range(process.T, 0, -1):
        x0_hat = predict(network, process, x, s)
        sampling.observe(s, x, x0_hat)
        x = (
            x
            - process.degrade(x0_hat, timestep(x, s))
            + process.degrade(x0_hat, timestep(x, s - 1))
        )
        sampling.on_step(process.T - s + 1, process.T)
    return x


def renoise(network: Network, process: Averaging, x: Tensor, sampling: Sampling) -> Tensor:
    """A step for a process with noise: predict x0, and draw the lines not yet averaged anew.

    x_{s-1} = D(h + sigma_{s-1} z, s - 1), where h is x0_hat with the means of x_s.
    """
    for s in range(process.T, 0, -1):
        x0_hat = predict(network, process, x, s)
        sampling.observe(s, x, x0_hat)
        h = process.centred(x0_hat) + process.fully_degraded(process.summary(x))
        eps = sampling.noise() if s > 1 else None
        x = process.degrade(h, timestep(x, s - 1), eps)
        sampling.on_step(process.T - s + 1, process.T)
    return x


def unconditional(network: Network, process: Averaging, x: Tensor, sampling: Sampling) -> Tensor:
    """From line means that are drawn, not taken from an image."""
    sampler = renoise if process.noise else algorithm2
    return sampler(network, process, x, sampling)


def direct(network: Network, process: Averaging, x: Tensor, sampling: Sampling) -> Tensor:
    """The prediction of x0 from x_T in one evaluation."""
    x0_hat = predict(network, process, x, process.T)
    sampling.observe(process.T, x, x0_hat)
    sampling.on_step(1, 1)
    return x0_hat


SAMPLERS: dict[str, Sampler[Averaging]] = {
    "algorithm1": algorithm1,
    "algorithm2": algorithm2,
    "renoise": renoise,
    "direct": direct,
    "unconditional": unconditional,
    "uniform": unconditional,  # the report's start, section 2.3
}
