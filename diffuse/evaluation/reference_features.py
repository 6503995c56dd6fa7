"""Features of the real images, extracted once for each extractor and kept beside the data.

`data/features/classifier-750a0b48-train.h5`: float32 features [N, d], logits [N, classes], and the
float64 moments of the features. A damaged file is made again.

Inception takes hours on a CPU, so the work is shared and outlives an interruption. Every process
that needs the file, a rank of this job or another job's, takes parts that nobody has made yet, in
an order of its own, and leaves each in a hidden file. When none is missing, one process joins them.
"""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffuse.data.tensors import SplitName, load_split
from diffuse.evaluation.features import Extractor
from diffuse.evaluation.metrics import Moments
from diffuse.runtime import console, files, hdf5
from diffuse.runtime.preemption import StopRequest

PART = 500  # images between two looks at whether to stop, of which at most these are lost


@dataclass(frozen=True)
class RealFeatures:
    """One split seen by one extractor."""

    features: Tensor  # [N, d] float32
    logits: Tensor  # [N, classes] float32
    moments: Moments
    data_sha256: str


def real_features(
    extractor: Extractor,
    split: SplitName,
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
    real = load_split(data_dir, split)  # where there is none, nothing is written
    path.parent.mkdir(parents=True, exist_ok=True)
    work = _Work(path, extractor, real.images, real.sha256)
    title = f"{extractor.name} features of the {split} set"
    cost = "processes that share this work may do parts of it twice"
    while True:
        with files.locked(path.with_name(f".{path.name}.lock"), cost):
            found = _read_whole(path, extractor)
            if found is None and path.exists():
                console.note(f"{path}: damaged; made again")
                path.unlink()
            found = found or work.join()
        if found is not None:
            return found
        work.make_missing(title, stop, shown)


@dataclass(frozen=True)
class _Work:
    """A file that is not there yet, and the parts of it that are."""

    path: Path
    extractor: Extractor
    images: Tensor
    data_sha256: str

    def make_missing(self, title: str, stop: StopRequest | None, shown: bool) -> None:
        """Return when every part is made, or the whole is, by whomever."""
        total, before, started = len(self.images), self._images_done(), time.monotonic()
        with console.Meter(title, total, before, shown) as meter:
            # Not torch's nor random's own generator: ranks with one seed would make the same parts.
            for part in random.SystemRandom().sample(self._parts, len(self._parts)):
                if self.path.exists():
                    return
                if self._part_path(part).exists():
                    continue
                if stop is not None and stop.signal is not None:
                    raise stop.end(f"{title}: stopped; the same command goes on from here")
                features, logits = self.extractor(self.images[part.start : part.stop])
                tensors = {"features": features, "logits": logits}
                _write(self._part_path(part), tensors, self._made_of)
                if self.path.exists():  # joined meanwhile, from another's copy of this part
                    self._remove(part)
                done = self._images_done()
                left = (time.monotonic() - started) / max(done - before, 1) * (total - done)
                meter.update(done, f"images  ETA {console.duration(left)}")

    def join(self) -> RealFeatures | None:
        """Write the whole and remove its parts; None where some are missing, damaged ones removed.

        Called by one process at a time.
        """
        if not all(self._part_path(part).exists() for part in self._parts):
            return None
        parts = [self._read_part(part) for part in self._parts]
        sound = [tensors for tensors in parts if tensors is not None]
        if len(sound) < len(parts):
            return None
        features, logits = (torch.cat(tensors) for tensors in zip(*sound, strict=True))
        moments = Moments.of(features)
        tensors = {
            "features": features,
            "logits": logits,
            "total": moments.total,
            "products": moments.products,
        }
        _write(self.path, tensors, self._made_of)
        for part in self._parts:
            self._remove(part)
        files.remove_leftovers(self.path.parent, others_write=True)
        return RealFeatures(features, logits, moments, self.data_sha256)

    @property
    def _made_of(self) -> dict[str, str]:
        return {"extractor_sha256": self.extractor.sha256, "data_sha256": self.data_sha256}

    @property
    def _parts(self) -> list[range]:
        n = len(self.images)
        return [range(start, min(start + PART, n)) for start in range(0, n, PART)]

    def _part_path(self, part: range) -> Path:
        return self.path.with_name(f".{self.path.stem}-{part.start:06d}-{part.stop:06d}.part")

    def _images_done(self) -> int:
        parts = sum(1 for _ in self.path.parent.glob(f".{self.path.stem}-*.part"))
        return min(parts * PART, len(self.images))

    def _read_part(self, part: range) -> tuple[Tensor, Tensor] | None:
        """Features and logits; None where they are damaged or of something else, and removed."""
        found = _read(self._part_path(part), ("features", "logits"))
        if found is None or found[1] != self._made_of:
            self._part_path(part).unlink(missing_ok=True)
            return None
        return found[0]["features"], found[0]["logits"]

    def _remove(self, part: range) -> None:
        with contextlib.suppress(OSError):  # a folder may let only a file's owner remove it
            self._part_path(part).unlink()


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
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    hdf5.write(path, arrays, made_of, hdf5.CHECKSUMMED)


def _read(path: Path, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and their sources; None where HDF5 finds a chunk's sum or more is wrong."""
    try:
        arrays, attributes = hdf5.read(path, names)
        made_of = {n: str(attributes[n]) for n in ("extractor_sha256", "data_sha256")}
    except (OSError, hdf5.Damaged, KeyError):
        return None
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, made_of
