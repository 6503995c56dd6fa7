"""The way from x_T to x_0: kept by an observer of a sampler, drawn as a moving picture and a strip.

Averaged images are degraded before the eye first, and then restored; the DDPM's start is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffuse.data.tensors import to_uint8
from diffuse.models.process import Process, timestep
from diffuse.rundir import animation, plots
from diffuse.rundir.plots import Images, spread
from diffuse.runtime.rng import Stream, generator

SHOWN = 16  # images of the moving picture
ROWS, COLUMNS = 8, 10  # of the strip: images and moments
FRAMES = 30  # at most: more would pass a megabyte where x_t is noise


@dataclass(frozen=True)
class Moment:
    """Images at timestep t beside those known (heading `x0`) or predicted to be at its end."""

    t: int
    x: Images
    x0: Images
    heading: str


@dataclass
class Trajectory:
    """Observes a sampler: x_T of all images, and of the first `n` x_t and x0_hat at each step.

    It changes nothing: the images are the same bits without it.
    """

    T: int
    amplitude: float
    n: int = 0
    starts: list[Tensor] = field(default_factory=list)  # x_T by batch
    states: dict[int, list[tuple[Images, Images]]] = field(default_factory=dict)  # t: by batch

    def observe(self, t: int, x: Tensor, x0_hat: Tensor) -> None:
        """Keep of a batch's x_t and x0_hat [B, 1, 28, 28] those that are shown."""
        if t == self.T:
            self.starts.append(x.cpu())
        kept = self.states.setdefault(t, [])
        missing = self.n - sum(len(images) for images, _ in kept)
        if missing > 0:
            kept.append((self._uint8(x[:missing]), self._uint8(x0_hat[:missing])))

    @property
    def x_T(self) -> Tensor:
        """The images at T [N, 1, 28, 28]."""
        return torch.cat(self.starts)

    def reverse(self) -> list[Moment]:
        """In the sampler's order, from T to 0."""
        moments = []
        for t, batches in self.states.items():
            x, x0_hat = (np.concatenate(images) for images in zip(*batches, strict=True))
            moments.append(Moment(t, x, x0_hat, "predicted x0"))
        return moments

    def forward(self, process: Process, x0: Tensor, seed: int) -> list[Moment]:
        """Originals x0 [n, 1, 28, 28], on the process's device, degraded from t = 0 to T - 1."""
        originals = self._uint8(x0)
        eps = torch.randn(x0.shape, generator=generator(seed, Stream.SAMPLE)).to(x0)
        moments = []
        for t in range(self.T):
            x = process.degrade(x0, timestep(x0, t), eps) if t else x0
            moments.append(Moment(t, self._uint8(x), originals, "original"))
        return moments

    def _uint8(self, x: Tensor) -> Images:
        images: Images = to_uint8(x, self.amplitude).cpu().numpy()
        return images


def animate(path: Path, ways: Sequence[Sequence[Moment]]) -> None:
    """Write these ways, one after the other, as a GIF: x_t beside x0."""
    frames = [m for way in ways for m in spread(way, FRAMES // len(ways))]
    animation.write(
        path, [[(f"x_t, t = {m.t}", m.x[:SHOWN]), (m.heading, m.x0[:SHOWN])] for m in frames]
    )


def draw_strip(path: Path, ways: Sequence[Sequence[Moment]], title: str) -> None:
    """Write these ways, one after the other, as a PNG: an image a row, a moment a column."""
    few = [m for way in ways for m in spread(way, COLUMNS // len(ways))]
    images = np.stack([m.x[:ROWS] for m in few], axis=1)  # [rows, columns, 28, 28]
    plots.strip(path, images, [f"t = {m.t}" for m in few], title=title)
