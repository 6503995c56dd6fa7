"""Images by number: image i of a seed is the same whatever batch it is made in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.models.averaging import Averaging
from diffuse.sampling import samplers
from diffuse.sampling.noise import ImageNoise
from diffuse.sampling.prior import LineMeans
from diffuse.sampling.samplers import Process


def generate(
    network: nn.Module,
    process: Process,
    spec: SamplerSpec,
    *,
    seed: int,
    indices: Sequence[int],
    amplitude: float,
    device: torch.device,
    originals: Tensor | None = None,
    prior: LineMeans | None = None,
    batch: int = 256,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The images numbered `indices` [n, 1, 28, 28], on the CPU.

    Args:
        originals: x0 [n, 1, 28, 28], which the conditional cold samplers degrade and restore.
        prior: where the unconditional cold sampler draws its start from.
        on_step: told of network evaluations done and in all.
    """
    was_training = network.training
    network.eval()
    made = []
    parts = [slice(k, k + batch) for k in range(0, len(indices), batch)]
    for number, part in enumerate(parts):
        mine = indices[part]
        noise = ImageNoise(seed, mine, device)
        x = _start(process, mine, part, noise, originals, prior, seed, amplitude).to(device)

        def report(done: int, steps: int, before: int = number) -> None:
            on_step(before * steps + done, len(parts) * steps)

        made.append(samplers.run(spec, network, process, x, noise, amplitude, report).cpu())
    network.train(was_training)
    return torch.cat(made)


def _start(
    process: Process,
    indices: Sequence[int],
    part: slice,
    noise: ImageNoise,
    originals: Tensor | None,
    prior: LineMeans | None,
    seed: int,
    amplitude: float,
) -> Tensor:
    """x_T [B, 1, 28, 28]."""
    if not isinstance(process, Averaging):
        return noise()
    device = process.order.device
    if prior is not None:
        return process.fully_degraded(prior.sample(seed, indices, amplitude).to(device))
    assert originals is not None, "a conditional sampler needs images to degrade"
    x0 = originals[part].to(device)
    return process.degrade(x0, torch.full((len(x0),), process.T, device=device))
