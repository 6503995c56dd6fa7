"""Labels as a condition, and classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffuse.models.process import Network
from diffuse.runtime.rng import Stream, generator


def drawn(classes: int, seed: int, indices: Sequence[int]) -> Tensor:
    """A label for each image [n], uniformly distributed; each depends on (seed, index) alone."""
    rngs = (generator(seed, Stream.LABEL, index) for index in indices)
    return torch.tensor([int(torch.randint(classes, (), generator=rng)) for rng in rngs])


def conditioned(network: nn.Module, labels: Tensor, guidance: float) -> Network:
    """`network`, told these labels [B]: for w = guidance, (1 + w) f(x, label) - w f(x, none).

    Equation 6 of Ho & Salimans 2022, for any prediction that is linear in eps at fixed x_t.
    """
    if not guidance:
        return lambda x, time: network(x, time, labels)
    both = torch.cat([labels, torch.full_like(labels, network.classes)])  # type: ignore[arg-type]

    def guided(x: Tensor, time: Tensor) -> Tensor:
        told, untold = network(torch.cat([x, x]), torch.cat([time, time]), both).float().chunk(2)
        return torch.lerp(untold, told, 1 + guidance)

    return guided
