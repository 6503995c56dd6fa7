"""Normal numbers as torch draws them on CUDA, by numpy: a reference for the noise of any GPU.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), then Box and
Muller. Thread i of a call computes number i, as long as a call has no more numbers than the GPU
has threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)


def philox(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Four random words of 32 bits [4, n] for each counter, four words too [4, n]."""
    words = list(counter)
    keys = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(ROUNDS):
        even, odd = MULTIPLIERS[0] * words[0], MULTIPLIERS[1] * words[2]
        first, second = (np.uint64(k) for k in keys)
        words = [(odd >> 32) ^ words[1] ^ first, odd & LOW, (even >> 32) ^ words[3] ^ second]
        words.append(even & LOW)
        keys = [(k + w) & 0xFFFFFFFF for k, w in zip(keys, WEYL, strict=True)]
    return np.stack(words)


def normal(n: int, seed: int, call: int = 0) -> NDArray[np.float64]:
    """The n numbers of a generator's `call`-th call (from 0) of randn or normal_ on CUDA."""
    zeros = np.zeros(n, np.uint64)
    counter = np.stack([zeros + np.uint64(call), zeros, np.arange(n, dtype=np.uint64), zeros])
    u, v = (philox(counter, seed)[:2].astype(np.float64) + 0.5) / 2**32
    numbers: NDArray[np.float64] = np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)
    return numbers
