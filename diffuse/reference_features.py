"""Features of the real images, extracted once for each extractor and kept beside the data.

`data/features/classifier-750a0b48-train.h5`: float32 features [N, d], logits [N, classes], and the
float64 moments of the features. A damaged file is made again.

Inception takes hours on a CPU, so the work is shared and outlives an interruption. Every process
that needs the file, a rank of this job or another job's, takes parts that nobody has made yet, in
an order of its own, and leaves each in a hidden file. When none is missing, one process joins them.
"""

from __future__ import annotations

import contextlib
import io
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import torch
from filelock import FileLock
from torch import Tensor

from diffuse import data, files, progress
from diffuse.features import Extractor
from diffuse.metrics import Moments
from diffuse.preemption import StopRequest

PART = 500  # images between two looks at whether to stop, of which at most these are lost
Split = Literal["train", "test"]


@dataclass(frozen=True)
class RealFeatures:
    """One split seen by one extractor."""

    features: Tensor  # [N, d] float32
    logits: Tensor  # [N, classes] float32
    moments: Moments
    data_sha256: str


def real_features(
    extractor: Extractor,
    split: Split,
    data_dir: Path,
    stop: StopRequest | None = None,
    shown: bool = True,
) -> RealFeatures:
    """The features of a whole split, from the cache or computed now, with all who compute them.

    Raises Interrupted where `stop` asks for it; the parts made until then are kept.
    """
    path = data_dir / "features" / f"{extractor.name}-{extractor.sha256[:8]}-{split}.h5"
    if (found := _read_whole(path, extractor)) is not None:
        return found
    real = data.load_split(data_dir, split)  # where there is none, nothing is written
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        _Part(path, extractor, real, slice(first, first + PART))
        for first in range(0, len(real.images), PART)
    ]
    while True:
        with FileLock(path.with_name(f".{path.name}.lock"), mode=0o664):
            found = _read_whole(path, extractor)
            if found is None and path.exists():
                progress.note(f"{path}: damaged; made again")
                path.unlink()
            found = found or _join(parts)
        if found is not None:
            return found
        title = f"{extractor.name} features of the {split} set"
        _make_missing(parts, title, stop, shown)


@dataclass(frozen=True)
class _Part:
    """A share of the work: some of the images, and the hidden file for what is made of them."""

    whole: Path
    extractor: Extractor
    real: data.Split
    images: slice

    @property
    def path(self) -> Path:
        return self.whole.with_name(f".{self.whole.stem}-{self.images.start:05}.part")

    @property
    def made_of(self) -> dict[str, str]:
        return {"extractor_sha256": self.extractor.sha256, "data_sha256": self.real.sha256}

    def is_done(self) -> bool:
        return self.path.exists() or self.whole.exists()

    def make(self) -> None:
        features, logits = self.extractor(self.real.images[self.images])
        _write(self.path, {"features": features, "logits": logits}, self.made_of)
        if self.whole.exists():  # it was joined meanwhile from another's copy of this part
            self.remove()

    def read(self) -> tuple[Tensor, Tensor] | None:
        """Features and logits; None where the file is missing, damaged or of something else."""
        found = _read(self.path, ("features", "logits"))
        if found is None or found[1] != self.made_of:
            return None
        return found[0]["features"], found[0]["logits"]

    def remove(self) -> None:
        with contextlib.suppress(OSError):  # a folder may let only a file's owner remove it
            self.path.unlink()


def _make_missing(parts: list[_Part], title: str, stop: StopRequest | None, shown: bool) -> None:
    """Return when each part is made, by whomever."""
    before = sum(part.is_done() for part in parts)
    total, started = sum(len(part.real.images[part.images]) for part in parts), time.monotonic()
    with progress.Meter(title, total, min(before * PART, total), shown) as meter:
        # Not torch's nor random's own generator: ranks with one seed would make the same parts.
        for part in random.SystemRandom().sample(parts, len(parts)):
            if part.is_done():
                continue
            if stop is not None and stop.signal is not None:
                raise stop.end(f"{title}: stopped; the same command goes on from here")
            part.make()
            done = sum(part.is_done() for part in parts)
            left = (time.monotonic() - started) / max(done - before, 1) * (len(parts) - done)
            meter.update(min(done * PART, total), f"images  ETA {progress.duration(left)}")


def _join(parts: list[_Part]) -> RealFeatures | None:
    """Write the whole and remove its parts; None where some are missing, or damaged and removed."""
    made = []
    for part in parts:
        if (tensors := part.read()) is not None:
            made.append(tensors)
        else:
            part.path.unlink(missing_ok=True)
    if len(made) < len(parts):
        return None
    features, logits = (torch.cat(tensors) for tensors in zip(*made, strict=True))
    moments = Moments.of(features)
    whole = {
        "features": features,
        "logits": logits,
        "total": moments.total,
        "products": moments.products,
    }
    _write(parts[0].whole, whole, parts[0].made_of)
    for part in parts:
        part.remove()
    files.remove_leftovers(parts[0].whole.parent, others_write=True)
    return RealFeatures(features, logits, moments, parts[0].real.sha256)


def _read_whole(path: Path, extractor: Extractor) -> RealFeatures | None:
    """None where there is no such file, or it is damaged or of other weights."""
    found = _read(path, ("features", "logits", "total", "products"))
    if found is None or found[1]["extractor_sha256"] != extractor.sha256:
        return None
    tensors, made_of = found
    features = tensors["features"]
    moments = Moments(len(features), tensors["total"], tensors["products"])
    return RealFeatures(features, tensors["logits"], moments, made_of["data_sha256"])


def _write(path: Path, tensors: dict[str, Tensor], made_of: dict[str, str]) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, tensor in tensors.items():
            file.create_dataset(name, data=tensor.numpy(), fletcher32=True, chunks=True)
        file.attrs.update(made_of)
    files.write_bytes(path, buffer.getbuffer())


def _read(path: Path, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and what they are made of; None where HDF5 finds a chunk's sum or more is wrong."""
    try:
        with h5py.File(path) as file:
            tensors = {name: torch.from_numpy(file[name][()]) for name in names}
            made_of = {n: str(file.attrs[n]) for n in ("extractor_sha256", "data_sha256")}
    except (OSError, KeyError, RuntimeError, ValueError):
        return None
    return tensors, made_of
