"""MNIST on the device: uint8 tensors, all of them resident.

No DataLoader and no per-image transform: the whole training set is 47 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffuse.data.mnist import SHA256, read_verified

SplitName = Literal["train", "test"]


@dataclass(frozen=True)
class Split:
    """A split's images uint8 [N, 28, 28], labels int64 [N], and the SHA-256 of all its images."""

    images: Tensor
    labels: Tensor
    sha256: str


def load_split(data_dir: Path, split: SplitName, limit: int | None = None) -> Split:
    """The first `limit` (default: all) images and labels of a split.

    Raises UserError where data_dir/mnist.h5 is missing or is not the true MNIST.
    """
    images = read_verified(data_dir, f"{split}/images")
    labels = read_verified(data_dir, f"{split}/labels")
    return Split(
        torch.from_numpy(images[:limit]),
        torch.from_numpy(labels[:limit].astype(np.int64)),
        SHA256[f"{split}/images"],
    )


def to_x0(images: Tensor, amplitude: float) -> Tensor:
    """uint8 [N, 28, 28] in 0..255 to float32 [N, 1, 28, 28] in [-amplitude, amplitude]."""
    return images[:, None].float() * (2 * amplitude / 255) - amplitude


def to_uint8(x: Tensor, amplitude: float) -> Tensor:
    """float [N, 1, 28, 28] in [-amplitude, amplitude] to uint8 [N, 28, 28].

    Values outside are clamped first: a bare cast would wrap them round.
    """
    unit = (x.float()[:, 0] + amplitude) / (2 * amplitude)
    return (unit.clamp(0, 1) * 255).round().to(torch.uint8)
