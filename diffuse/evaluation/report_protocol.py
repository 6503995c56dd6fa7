"""The figures that the report's own code would give: to check its claims, comparable with nothing.

    python -m diffuse.evaluate ddpm_mnist_80_default.pth --report-protocol

Its code hands images in [-0.5, 0.5] to torchmetrics with `normalize=True`, which multiplies by 255
and casts to uint8. That is meant for [0, 1]: here negative values wrap, -0.5 becomes 129, black is
brighter than white, and nothing is clamped. It compares 100 images with 100 real ones, where 2,048
features need many thousands. A cast of negative numbers is not defined; ours is the common one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.data.tensors import load_split, to_x0
from diffuse.evaluation.features import load_extractor
from diffuse.evaluation.metrics import Moments
from diffuse.evaluation.reference_features import RealFeatures
from diffuse.evaluation.sample_set import SampleSet
from diffuse.evaluation.scorer import Scorer
from diffuse.models.process import OnStep
from diffuse.rundir.evaluations import REPORT, Protocol
from diffuse.runtime.distributed import World
from diffuse.runtime.errors import UserError

IMAGES = 100
AMPLITUDE = 0.5
SAMPLERS = {
    "ddpm": ("ancestral",),
    "averaging": ("algorithm2",),
}  # the report's, by the process's kind
WARNING = (
    "the report's own protocol, to check its claims: images wrapped by a cast to uint8 and too few;"
    " comparable with no figure of another protocol"
)


def wrapped(x: Tensor) -> Tensor:
    """float [N, 1, 28, 28] in [-0.5, 0.5] to uint8 [N, 28, 28] as the report's code casts it.

    -0.5 becomes 129, 0 stays 0 and 0.5 becomes 127; values outside wrap too.
    """
    return (x[:, 0].double() * 255).trunc().long().remainder(256).to(torch.uint8)


@dataclass
class ReportScorer(Scorer):
    """Scores against the first n test images, all wrapped; the floor is that of the next n."""

    keeps_images: ClassVar[bool] = False

    @classmethod
    def of(cls, extractor: str, data_dir: Path, world: World, n: int) -> ReportScorer:
        """The scorer for n generated images.

        Raises UserError where weights or data are missing, or there are fewer than 2 n test images.
        """
        chosen = load_extractor(extractor, data_dir, world.device)
        split = load_split(data_dir, "test")
        if 2 * n > len(split.images):
            raise UserError(
                f"--report-protocol with {n:,} images needs {2 * n:,} test images, and there are"
                f" {len(split.images):,}; the report has {IMAGES}"
            )

        def seen(images: Tensor) -> RealFeatures:
            features, logits = chosen(wrapped(to_x0(images, AMPLITUDE)))
            return RealFeatures(features, logits, Moments.of(features), split.sha256)

        return cls(chosen, seen(split.images[:n]), seen(split.images[n : 2 * n]), data_dir, world)

    def images(self, sample_set: SampleSet, n: int, on_step: OnStep) -> Tensor:
        model = sample_set.model
        drawn = model.sample(
            n,
            sampler=sample_set.spec,
            seed=sample_set.seed,
            data_dir=self.data_dir,
            on_step=on_step,
        )
        return wrapped(drawn * (AMPLITUDE / model.config.data.amplitude))

    def protocol(self, n: int, spec: SamplerSpec, seed: int, classes: int = 0) -> Protocol:
        ours = super().protocol(n, spec, seed, classes)
        changed = {
            "convention": REPORT,
            "real_split": "test",
            "value_range": "[-0.5, 0.5] times 255, cast to uint8, which wraps; not clamped",
        }
        return ours.model_copy(update=changed)

    def floor_images(self, n: int, spec: SamplerSpec) -> tuple[str, Tensor]:
        return f"test images {n + 1} to {2 * n}, wrapped too", torch.arange(n)

    def _digits(self, *of_images: object) -> None:
        return None  # its real images are few

    def _remarks(self, n: int) -> list[str]:
        return [WARNING]

    def _reconstruction(self, images: Tensor) -> None:
        return None  # of wrapped images an error says nothing
