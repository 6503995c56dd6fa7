"""The images that a checkpoint is judged by: drawn once, kept as HDF5, resumed where interrupted.

Image i depends on the seed and i alone, up to the rounding of a batch of another size. They are
drawn in parts that ranks take in turn; each part is a file of its own until all are there.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.section import IMAGE_SIZE
from diffuse.data.tensors import to_uint8
from diffuse.models.process import OnStep
from diffuse.rundir.evaluations import Drawing
from diffuse.runtime import hdf5
from diffuse.runtime.device import device_name
from diffuse.runtime.distributed import World
from diffuse.runtime.errors import UserError
from diffuse.runtime.files import buffered
from diffuse.sampling.generate import Start, generate, over_parts
from diffuse.sampling.trained_model import Trained

SHOWN = 64  # images whose drawn x_T is kept
PART = 250  # images drawn at once on a CPU, and at least
FILLS_A_GPU = 1000  # of them take some 400 MB with the U-Nets, 2 GB with more_capacity


def part_size(n: int, device: torch.device, ranks: int) -> int:
    """Images of n to draw at once: as many as fill the device, and as many for each rank."""
    if device.type != "cuda":
        return PART
    rounds = math.ceil(n / (ranks * FILLS_A_GPU))
    return max(PART, math.ceil(n / (ranks * rounds)))


@dataclass
class SampleSet:
    """A set of images of one model, sampler and seed, kept in `path`."""

    model: Trained
    weights_sha256: str
    spec: SamplerSpec
    seed: int
    path: Path
    drawing: Drawing | None = None  # of the images that `images` has drawn on this rank

    def images(
        self, n: int, data_dir: Path, world: World, on_step: OnStep = lambda done, total: None
    ) -> Tensor:
        """The first n images, uint8 [n, 28, 28], on every rank; missing ones are drawn.

        Raises UserError where a conditional sampler is asked for more than there are test images.
        """
        kept = world.from_main(self._kept() if world.is_main else None)
        if kept is not None and len(kept) >= n:
            return torch.from_numpy(kept[:n])
        have = 0 if kept is None else len(kept) // PART * PART
        size = part_size(n - have, self.model.device, world.size)
        parts = [range(start, min(start + size, n)) for start in range(have, n, size)]
        mine = [part for part in parts[world.rank :: world.size] if self._part(part) is None]
        x_T = self.model.start(self.spec, self.seed, range(n), data_dir) if mine else None
        started, drawn = time.monotonic(), 0
        for k, part in enumerate(mine):
            assert x_T is not None
            images = self._draw(x_T, part, over_parts(on_step, k, len(mine)))
            drawn += len(images)
            with buffered(self._part_path(part)) as buffer:
                np.savez(buffer, images=images.numpy())  # a zip file has checksums
        if drawn:
            seconds, name = time.monotonic() - started, device_name(self.model.device)
            self.drawing = Drawing(images=drawn, seconds=round(seconds, 3), device=name)
        world.highest(0)  # all parts are there
        if world.is_main:
            found = [None if kept is None else kept[:have], *map(self._part, parts)]
            self._keep(np.concatenate([part for part in found if part is not None]), data_dir)
        done = world.from_main(self._kept() if world.is_main else None)
        assert done is not None and len(done) >= n
        return torch.from_numpy(done[:n])

    def _draw(self, start: Start, indices: range, on_step: OnStep) -> Tensor:
        """The images numbered `indices`, uint8 [n, 28, 28]."""
        model, amplitude = self.model, self.model.config.data.amplitude
        x = generate(
            model.network,
            model.process,
            self.spec,
            start,
            seed=self.seed,
            indices=indices,
            amplitude=amplitude,
            device=model.device,
            batch=len(indices),
            on_step=on_step,
        )
        return to_uint8(x, amplitude)

    @property
    def _parts(self) -> Path:
        return self.path.with_name(f".{self.path.stem}-{self.weights_sha256[:12]}")

    def _part_path(self, part: range) -> Path:
        return self._parts / f"{part.start:06d}-{part.stop:06d}.npz"

    def _part(self, part: range) -> np.ndarray | None:
        try:
            with np.load(self._part_path(part), allow_pickle=False) as file:
                images: np.ndarray = file["images"]
        except (OSError, ValueError, EOFError, KeyError, BadZipFile, AttributeError, TypeError):
            return None
        right = images.dtype == np.uint8 and len(images) == len(part)
        return images if right else None

    def _keep(self, images: np.ndarray, data_dir: Path) -> None:
        arrays = {"images": images}
        if self.spec.draws_means:  # x_T float32, in the model's range, of the images to look at
            first = range(min(len(images), SHOWN))
            start = self.model.start(self.spec, self.seed, first, data_dir)
            eps = torch.zeros(len(first), 1, IMAGE_SIZE, IMAGE_SIZE, device=self.model.device)
            arrays["x_T"] = start(first, eps).cpu().numpy()
        hdf5.write(
            self.path,
            arrays,
            {
                "model": self.model.name,
                "signature": self.model.config.signature,
                "weights_sha256": self.weights_sha256,
                "epoch": self.model.epoch,
                "sampler": str(self.spec),
                "seed": self.seed,
                "first_index": 0,
                "value_range": "uint8, 0 black to 255 white, clamped",
            },
        )
        shutil.rmtree(self._parts, ignore_errors=True)

    def _kept(self) -> np.ndarray | None:
        """The images in the file, None where it is not there or of other weights.

        Raises UserError where the file is damaged or holds something else.
        """
        try:
            arrays, facts = hdf5.read(self.path, ["images"])
        except FileNotFoundError:
            return None
        except hdf5.Damaged as error:
            raise UserError(f"{error}; delete it and its images are drawn again") from None
        images = arrays["images"]
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
            raise UserError(f"{self.path}: {images.dtype} {images.shape}, not uint8 [N, 28, 28]")
        mine = (self.weights_sha256, str(self.spec), self.seed)
        if mine != tuple(facts.get(name) for name in ("weights_sha256", "sampler", "seed")):
            return None
        return images
