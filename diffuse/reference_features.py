"""Features of the real images, extracted once for each extractor and kept beside the data.

`data/features/classifier-750a0b48-train.h5`: float32 features [N, d], logits [N, classes], and the
float64 moments of the features. Safe under several processes; a damaged file is made again.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import torch
from filelock import FileLock
from torch import Tensor

from diffuse import files, progress
from diffuse.data import load_split
from diffuse.features import Extractor
from diffuse.metrics import Moments
from diffuse.preemption import StopRequest

PART = 250  # images between two looks at whether to stop
Split = Literal["train", "test"]


@dataclass(frozen=True)
class RealFeatures:
    """One split seen by one extractor."""

    features: Tensor  # [N, d] float32
    logits: Tensor  # [N, classes] float32
    moments: Moments
    data_sha256: str


def real_features(
    extractor: Extractor, split: Split, data_dir: Path, stop: StopRequest | None = None
) -> RealFeatures:
    """The features of a whole split, from the cache or computed now.

    Raises Interrupted where `stop` asks for it: Inception takes hours on a CPU.
    """
    name = f"{extractor.name}-{extractor.sha256[:8]}-{split}.h5"
    path = data_dir / "features" / name
    if path.is_file() and (found := _read(path, extractor)) is not None:
        return found
    data = load_split(data_dir, split)  # where there is none, nothing is written
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{name}.lock"), mode=0o664):
        # another process may have been faster
        if path.is_file() and (found := _read(path, extractor)) is not None:
            return found
        if path.exists():
            progress.note(f"{path}: damaged; made again")
        title = f"{extractor.name} features of the {split} set"
        parts = []
        done, total, started = 0, len(data.images), time.monotonic()
        with progress.Meter(title, total) as meter:
            for part in torch.split(data.images, PART):
                if stop is not None and stop.signal is not None:
                    raise stop.end(f"{title}: stopped, nothing kept; the same command begins anew")
                parts.append(extractor(part))
                done += len(part)
                left = (time.monotonic() - started) / done * (total - done)
                meter.update(done, f"images  ETA {progress.duration(left)}", total)
        features, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        made = RealFeatures(features, logits, Moments.of(features), data.sha256)
        _write(path, made, extractor)
    return made


def _write(path: Path, real: RealFeatures, extractor: Extractor) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, tensor in (
            ("features", real.features),
            ("logits", real.logits),
            ("total", real.moments.total),
            ("products", real.moments.products),
        ):
            file.create_dataset(name, data=tensor.numpy(), fletcher32=True, chunks=True)
        file.attrs["extractor_sha256"] = extractor.sha256
        file.attrs["data_sha256"] = real.data_sha256
    files.write_bytes(path, buffer.getbuffer())


def _read(path: Path, extractor: Extractor) -> RealFeatures | None:
    """None where the file is damaged (HDF5 checks each chunk's sum) or of other weights."""
    try:
        with h5py.File(path) as file:
            if file.attrs["extractor_sha256"] != extractor.sha256:
                return None
            names = ("features", "logits", "total", "products")
            features, logits, total, products = (torch.from_numpy(file[n][()]) for n in names)
            data_sha256 = str(file.attrs["data_sha256"])
    except (OSError, KeyError, RuntimeError, ValueError):
        return None
    return RealFeatures(features, logits, Moments(len(features), total, products), data_sha256)
