"""Noise that belongs to an image: it depends on (seed, index) alone, never on the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffuse.config.schema import IMAGE_SIZE
from diffuse.runtime.rng import Stream, generator

CHUNK = 32  # calls drawn at once: a generator per image is slow to ask, so it is asked rarely


class ImageNoise:
    """Each call gives the next standard normals [B, 1, 28, 28] of the images `indices`."""

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
