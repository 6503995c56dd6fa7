"""Samples on disk: HDF5 with uint8 `images` [n, 28, 28] and how they were made as attributes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffuse.runtime import files


def write(
    path: Path,
    images: NDArray[np.uint8],
    attributes: Mapping[str, Any],
    **more: NDArray[Any],
) -> None:
    """Write `images` and further data sets atomically, compressed."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in {"images": images, **more}.items():
            file.create_dataset(
                name, data=array, compression="gzip", compression_opts=4, fletcher32=True
            )
        for name, value in attributes.items():
            file.attrs[name] = value
    files.write_bytes(path, buffer.getbuffer())
