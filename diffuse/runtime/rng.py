"""Randomness is derived, never stored: a draw's generator follows from the seed and its purpose.

A resumed run needs no saved generator state, and a run on 1, 2 or 8 ranks draws the same numbers.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Numbers that one call draws on CUDA: 32 images, 98 blocks of threads.
CUDA_CALL = 32 * 28 * 28


class Stream(IntEnum):
    """The purpose of a generator. The numbers are part of every result: only append."""

    INIT = 0  # the network's initial weights
    DATA_ORDER = 1  # the permutation of one epoch, index: epoch
    STEP = 2  # timesteps and noise of one training step, index: step
    AVERAGING_ORDER = 3  # the random order of lines
    SAMPLE = 4  # the noise of one generated image, index: the image's number
    PRIOR = 5  # line means drawn for one generated image, index: the image's number
    DROPOUT = 6  # dropout masks of one training step, index: step, rank
    FLOOR = 7  # the test images that show how good a figure can be
    LABEL = 8  # the label of one generated image, index: the image's number


def derive_seed(seed: int, stream: Stream, *index: int) -> int:
    """A 63-bit seed that depends on all its arguments (numpy's SeedSequence does the mixing)."""
    import numpy as np

    state = np.random.SeedSequence((seed, int(stream), *index)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(
    seed: int, stream: Stream, *index: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator on `device`, seeded by `derive_seed`."""
    import torch

    return torch.Generator(device).manual_seed(derive_seed(seed, stream, *index))


def normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers of that shape, on the generator's device.

    On CUDA the place of a number follows from the number of threads, and in a large call that
    follows from the GPU: so calls are small enough for every GPU, or slice of one, that has at
    least 14 multiprocessors.
    """
    import torch

    n, device = math.prod(shape), generator.device
    if device.type != "cuda" or n <= CUDA_CALL:
        return torch.randn(shape, generator=generator, device=device)
    numbers = torch.empty(n, device=device)
    for part in torch.split(numbers, CUDA_CALL):
        part.normal_(generator=generator)
    return numbers.view(shape)
