"""The parts in which a set of images is drawn."""

from __future__ import annotations

import pytest
import torch

from diffuse.evaluation.sample_set import part_size


@pytest.mark.parametrize(
    ("device", "n", "ranks", "size"),
    [
        ("cpu", 10_000, 1, 250),
        ("cuda", 10_000, 1, 1000),
        ("cuda", 10_000, 8, 625),  # two each
        ("cuda", 10_000, 3, 834),
        ("cuda", 1000, 4, 250),
        ("cuda", 20, 1, 250),
    ],
)
def test_a_gpu_draws_up_to_a_thousand_images_at_once_and_as_many_on_each_rank(
    device: str, n: int, ranks: int, size: int
) -> None:
    assert part_size(n, torch.device(device), ranks) == size
