"""A trained model to play with: `diffuse.load("ddpm/unet")`.

model = diffuse.load("runs/ddpm-unet-1a2b3c4d")
model.show(16)
images = model.images(16)  # uint8 [16, 28, 28]
print(model.evaluate(1000))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.data.tensors import to_uint8
from diffuse.evaluation.scorer import Scorer
from diffuse.rundir import evaluations, plots
from diffuse.rundir.evaluations import Figure
from diffuse.rundir.weight_facts import Facts
from diffuse.runtime import files
from diffuse.runtime.device import choose_device
from diffuse.runtime.distributed import World
from diffuse.runtime.options import default_data_dir
from diffuse.sampling import prior, trained_model, weight_file
from diffuse.sampling.trained_model import Trained


class Model(Trained):
    """A trained model: its images as numbers, as a picture, and how good they are."""

    def images(
        self, n: int = 16, *, seed: int = 0, sampler: SamplerSpec | str | None = None, **more: Any
    ) -> npt.NDArray[np.uint8]:
        """n images, uint8 [n, 28, 28], 0 black to 255 white; arguments as those of `sample`."""
        x = self.sample(n, seed=seed, sampler=sampler, **more)
        images: npt.NDArray[np.uint8] = to_uint8(x, self.config.data.amplitude).numpy()
        return images

    def show(self, n: int = 16, *, columns: int = 8, scale: int = 2, **more: Any) -> Image.Image:
        """n images side by side: a notebook shows the picture; `.show()` or `.save(path)` it."""
        picture = Image.fromarray(plots.tile(self.images(n, **more), columns))
        size = (scale * picture.width, scale * picture.height)
        return picture.resize(size, Image.Resampling.NEAREST)

    def evaluate(
        self,
        n: int = 1000,
        *,
        seed: int = 0,
        sampler: SamplerSpec | str | None = None,
        extractor: str | None = None,
        data_dir: Path | None = None,
    ) -> Figure:
        """FID, KID and IS of n images, with their protocol and those of real images.

        Raises UserError for too few images, or where data or weights are missing.
        """
        spec = self.spec(sampler) if isinstance(sampler, str) else sampler or self.sampler
        folder = data_dir or default_data_dir()
        world = World(rank=0, local_rank=0, size=1, device=self.device)
        scorer = Scorer.load(extractor or self.config.eval.extractor, folder, world)
        scorer.require_originals(n, [spec])
        images = torch.from_numpy(self.images(n, seed=seed, sampler=spec, data_dir=folder))
        classes = self.config.model.classes
        return scorer.figure(images, spec, seed=seed, samples=None, classes=classes)

    def export(self, path: Path, *, half: bool = True, data_dir: Path | None = None) -> None:
        """Write a weight file, with the figures that the run has of this epoch.

        Args:
            half: the network's tensors in float16.
        """
        dtype = torch.float16 if half else torch.float32
        tensors = {
            f"network.{name}": tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.network.state_dict().items()
        }
        tensors |= {f"process.{name}": t for name, t in self.process.state_dict().items()}
        if any(m.source == "prior" for m in self.config.process.samplers.values()):
            fitted = self.fit_prior(data_dir)
            tensors |= {f"prior.{name}": getattr(fitted, name).float() for name in prior.TENSORS}
        facts = Facts(
            name=self.name,
            config=self.config.model_dump(mode="json"),
            epoch=self.epoch,
            step=self.step,
            weights="model" if self.config.train.ema is None else "ema",
            figures=self.figures or self._figures_of_run(),
        )
        weight_file.write(path, facts, tensors)

    def _figures_of_run(self) -> list[dict[str, Any]]:
        if self.run is None or not self.run.has_epoch(self.epoch):
            return []
        evaluation = evaluations.read(self.run.evaluation_path(self.epoch))
        sha256 = files.sha256(self.run.checkpoint_path(self.epoch))
        if evaluation is None or evaluation.checkpoint_sha256 != sha256:
            return []
        return [figure.plain() for figure in evaluation.figures]

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.network.parameters())
        return (
            f"<{self.name}: {self.config.process.title}, {size:,} parameters, epoch {self.epoch},"
            f" sampler {self.sampler}, on {self.device}>"
        )


def load(path: str | Path, *, epoch: int | None = None, device: str = "auto") -> Model:
    """The model at `path`: the name of shipped weights, a run directory (its last epoch, or
    `epoch`), a checkpoint, an exported file, or one of the report's.

    Args:
        device: auto (CUDA where there is a GPU), cpu or cuda.

    Raises UserError where it is missing, damaged or something else.
    """
    return Model(**vars(trained_model.load(path, epoch=epoch, device=choose_device(device))))
