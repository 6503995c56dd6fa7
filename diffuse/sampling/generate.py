"""Images by number: image i of a seed does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.section import IMAGE_SIZE
from diffuse.models.process import Network, Observer, OnStep, Process, Sampling, timestep
from diffuse.runtime.rng import Stream, generator
from diffuse.sampling.labels import conditioned, drawn
from diffuse.sampling.prior import Prior, uniform_means

CHUNK = 32  # calls drawn at once: a generator per image is slow to ask, so it is asked rarely

Start = Callable[[Sequence[int], Tensor], Tensor]  # numbers of images, their noise -> x_T


class ImageNoise:
    """Each call gives the next standard normals [B, 1, 28, 28] of the images `indices`.

    They depend on (seed, index) alone, never on the batch.
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str) -> None:
        self.generators = [generator(seed, Stream.SAMPLE, i, device=device) for i in indices]
        self.device = device
        self.calls = 0
        self.chunk = torch.empty(0)

    def __call__(self) -> Tensor:
        if self.calls % CHUNK == 0:
            shape = (CHUNK, 1, IMAGE_SIZE, IMAGE_SIZE)
            self.chunk = torch.stack(
                [torch.randn(shape, generator=g, device=self.device) for g in self.generators],
                dim=1,
            )  # [CHUNK, B, 1, 28, 28]
        noise = self.chunk[self.calls % CHUNK]
        self.calls += 1
        return noise


def from_noise(process: Process) -> Start:
    """x_T of a process of which nothing of x0 remains at T."""
    return lambda indices, eps: process.fully_degraded(eps.new_empty(len(eps), 1, 0), eps)


def from_prior(process: Process, prior: Prior, seed: int, amplitude: float) -> Start:
    """x_T whose summaries are drawn, not taken from an image."""
    return lambda indices, eps: process.fully_degraded(
        prior.sample(seed, indices, amplitude).to(eps), eps
    )


def from_uniform(process: Process, seed: int, amplitude: float) -> Start:
    """x_T whose means are uniform, as in the report's section 2.3."""

    def start(indices: Sequence[int], eps: Tensor) -> Tensor:
        means = process.summary(torch.zeros_like(eps)).shape[-1]
        return process.fully_degraded(uniform_means(seed, indices, means, amplitude).to(eps), eps)

    return start


def from_images(process: Process, x0: Tensor, first_index: int = 0) -> Start:
    """x_T of originals x0 [n, 1, 28, 28], whose numbers begin with `first_index`."""

    def start(indices: Sequence[int], eps: Tensor) -> Tensor:
        mine = x0[[index - first_index for index in indices]].to(eps)
        return process.degrade(mine, timestep(mine, process.T), eps)

    return start


def in_bf16(network: Network, device: torch.device) -> Network:
    """`network` computing in bfloat16; its inputs and outputs are float32."""

    def rounded(x: Tensor, time: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return network(x, time).float()

    return rounded


def over_parts(on_step: OnStep, part: int, parts: int) -> OnStep:
    """`on_step` for the steps of one part (from 0), counted over all parts of as many steps."""
    return lambda done, steps: on_step(part * steps + done, parts * steps)


def generate(
    network: nn.Module,
    process: Process,
    spec: SamplerSpec,
    start: Start,
    *,
    seed: int,
    indices: Sequence[int],
    amplitude: float,
    device: torch.device,
    labels: Sequence[int] | None = None,
    batch: int = 256,
    on_step: OnStep = lambda done, total: None,
    observe: Observer = lambda t, x, x0_hat: None,
) -> Tensor:
    """The images numbered `indices` [n, 1, 28, 28], on the CPU.

    Args:
        amplitude: images lie in [-amplitude, amplitude], to which `spec.clip` clamps.
        device: where the network and the process are.
        labels: of a network that is told them; default: drawn uniformly.
        on_step: called with the network evaluations done and in all.
        observe: called for each batch with t, x_t and the network's x0_hat, from x_T to x_0.
    """
    classes = getattr(network, "classes", 0)
    if labels is None and classes:
        labels = drawn(classes, seed, indices).tolist()
    was_training = network.training
    network.eval()
    batches = []
    parts = [indices[k : k + batch] for k in range(0, len(indices), batch)]
    for number, part in enumerate(parts):
        noise = ImageNoise(seed, part, device)
        limit = amplitude if spec.clip else None
        told: Network = network
        if labels is not None:
            of_part = torch.tensor(labels[number * batch :][: len(part)], device=device)
            told = conditioned(network, of_part, spec.guidance)
        if spec.bf16:
            told = in_bf16(told, device)
        counted = over_parts(on_step, number, len(parts))
        sampling = Sampling(noise, spec.steps, spec.eta, limit, counted, observe)
        with torch.inference_mode():
            x = process.sample(spec.name, told, start(part, noise()), sampling)
            observe(0, x, x)
        batches.append(x.cpu())
    network.train(was_training)
    return torch.cat(batches)
