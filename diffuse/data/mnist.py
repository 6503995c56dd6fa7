"""The staged file: MNIST in HDF5, checked against the SHA-256 of the original at each reading.

    mnist.h5: train/images uint8 [60000, 28, 28]   train/labels uint8 [60000]
              test/images  uint8 [10000, 28, 28]   test/labels  uint8 [10000]

Free of torch, so that a login node can stage it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffuse.runtime import hdf5
from diffuse.runtime.errors import UserError

# SHA-256 of the uint8 arrays of the original MNIST.
SHA256 = {
    "train/images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "train/labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "test/images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "test/labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}


def read_verified(data_dir: Path, name: str) -> NDArray[np.uint8]:
    """One of the four arrays of data_dir/mnist.h5.

    Raises UserError where the file is missing or is not the true MNIST.
    """
    path = data_dir / "mnist.h5"
    remedy = f"run python -m diffuse.prepare --data-dir {data_dir}"
    try:
        array = hdf5.read(path, [name])[0][name]
    except FileNotFoundError:
        raise UserError(
            f"{path}: MNIST is not staged here; {remedy}, or name another folder by --data-dir or"
            " DIFFUSE_DATA"
        ) from None
    except hdf5.Damaged:
        raise UserError(
            f"{path}: damaged ({name} cannot be read); delete it and {remedy}"
        ) from None
    if digest(array) != SHA256[name]:
        raise UserError(f"{path}: damaged ({name} is not MNIST's); delete it and {remedy}")
    return array


def digest(array: NDArray[Any]) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
