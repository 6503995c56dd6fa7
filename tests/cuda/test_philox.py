"""The reference for CUDA's noise, against published numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda import philox


@pytest.mark.parametrize(
    ("word", "key", "expected"),
    [
        (0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**32 - 1, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_philox_matches_its_authors_known_answers(word: int, key: int, expected: str) -> None:
    words = philox.philox(np.full((4, 1), word, np.uint64), key)[:, 0]
    assert " ".join(f"{w:08x}" for w in words) == expected


def test_normals_are_those_that_torch_prints_on_a_gpu() -> None:
    """torch.manual_seed(0); torch.randn(6, device="cuda")"""
    printed = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797]
    np.testing.assert_allclose(philox.normal(6, seed=0), printed, atol=1e-4)
