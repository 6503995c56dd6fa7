"""The scores of a set of images, with their protocol, and the floor: those of real images.

    figure = Scorer.load("classifier", data_dir, world).figure(images, spec, seed=0, ...)

The floor is made of as many test images, drawn at random, since the test set's first half is
cleaner than its second; of restored images, it is those that they were restored from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.schema import IS_SPLITS
from diffuse.data.tensors import load_split
from diffuse.evaluation import metrics
from diffuse.evaluation.by_digit import by_digit
from diffuse.evaluation.features import Extractor, load_extractor
from diffuse.evaluation.reference_features import RealFeatures, real_features
from diffuse.evaluation.sample_set import SampleSet
from diffuse.models.process import OnStep
from diffuse.rundir.evaluations import DigitScores, Figure, Protocol, Scores
from diffuse.runtime.distributed import World
from diffuse.runtime.errors import UserError
from diffuse.runtime.preemption import StopRequest
from diffuse.runtime.rng import Stream, generator
from diffuse.sampling.labels import drawn


@dataclass
class Scorer:
    """An extractor and the features of the real images."""

    extractor: Extractor
    train: RealFeatures
    test: RealFeatures
    data_dir: Path
    world: World
    floors: dict[str, Scores] = field(default_factory=dict)  # by the images that they are of

    keeps_images: ClassVar[bool] = True  # as a file that later figures are made of

    @classmethod
    def load(
        cls, extractor: str, data_dir: Path, world: World, stop: StopRequest | None = None
    ) -> Scorer:
        """Load the extractor and the real images' features (the first time, compute them).

        Raises UserError where weights or data are missing or damaged, Interrupted by `stop`.
        """
        chosen = load_extractor(extractor, data_dir, world.device)
        train, test = (
            real_features(chosen, split, data_dir, stop, shown=world.is_main)
            for split in ("train", "test")
        )
        return cls(chosen, train, test, data_dir, world)

    def require_originals(self, n: int, specs: Sequence[SamplerSpec]) -> None:
        """Raise UserError where one of `specs` restores test images and there are fewer than n."""
        n_test = len(self.test.features)
        for spec in specs:
            if spec.is_conditional and n > n_test:
                raise UserError(
                    f"{spec}: {n:,} images, but there are {n_test:,} test images to restore; use"
                    " fewer, or --samplers unconditional"
                )

    def images(self, sample_set: SampleSet, n: int, on_step: OnStep) -> Tensor:
        """The first n images to judge, uint8 [n, 28, 28], on every rank; missing ones are drawn."""
        return sample_set.images(n, self.data_dir, self.world, on_step)

    def figure(
        self,
        images: Tensor,
        spec: SamplerSpec,
        *,
        seed: int,
        samples: str | None,
        classes: int = 0,
    ) -> Figure:
        """Scores of generated uint8 images [n, 28, 28]. Called on all ranks, which share the work.

        Args:
            samples: where the images lie, relative to the run directory.
            classes: labels that the network was told.

        Raises UserError for too few images.
        """
        started = time.monotonic()
        n = len(images)
        metrics.require_enough(n)
        features, logits = self._extract(images)
        return Figure(
            protocol=self.protocol(n, spec, seed, classes),
            **self._scores(features, logits).plain(),
            floor=self.floor(n, spec),
            reconstruction=self._reconstruction(images) if spec.is_conditional else None,
            digits=self._digits(features, logits, seed, classes),
            labels=self._remarks(n),
            samples=samples,
            seconds=round(time.monotonic() - started, 2),
        )

    def protocol(self, n: int, spec: SamplerSpec, seed: int, classes: int = 0) -> Protocol:
        """All that a figure depends on beside the images' quality."""
        labels = {"labels": f"drawn uniformly from {classes}"} if classes else {}
        return Protocol(
            **labels,
            extractor=self.extractor.name,
            extractor_sha256=self.extractor.sha256,
            features=self.extractor.size,
            real_split="train",
            real_images=self.train.moments.n,
            real_sha256=self.train.data_sha256,
            images=n,
            value_range="[0, 1], clamped, as uint8",
            resize=self.extractor.resize,
            sampler=str(spec),
            seed=seed,
            source=spec.method.source,
            kid_subset_size=metrics.kid_subset_size(n),
            kid_subsets=metrics.KID_SUBSETS,
            is_splits=IS_SPLITS,
            floor=self.floor_images(n, spec)[0],
        )

    def floor(self, n: int, spec: SamplerSpec) -> Scores:
        """The scores of n real test images, of all where there are fewer."""
        name, numbers = self.floor_images(n, spec)
        if name not in self.floors:
            self.floors[name] = self._scores(self.test.features[numbers], self.test.logits[numbers])
        return self.floors[name]

    def floor_images(self, n: int, spec: SamplerSpec) -> tuple[str, Tensor]:
        """The test images of the floor: in words, and their numbers."""
        n_test = len(self.test.features)
        if spec.is_conditional:
            return f"the first {n} test images, which were restored", torch.arange(n)
        if n >= n_test:
            return f"all {n_test} test images", torch.arange(n_test)
        numbers = torch.randperm(n_test, generator=generator(0, Stream.FLOOR))
        return f"{n} test images drawn at random, seed 0", numbers[:n]

    def _scores(self, features: Tensor, logits: Tensor) -> Scores:
        kid, kid_std = metrics.kid(self.train.features, features)
        score, score_std = metrics.inception_score(logits)
        return Scores(
            fid=metrics.fid(self.train.moments, features),
            kid=kid,
            kid_std=kid_std,
            is_=score,
            is_std=score_std,
        )

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of all images, each rank having done its share."""
        n, size = len(images), self.world.size
        each = math.ceil(n / size)
        mine = slice(self.world.rank * each, (self.world.rank + 1) * each)
        features = torch.zeros(n, self.extractor.size)
        logits = torch.zeros(n, self.test.logits.shape[1])
        if len(images[mine]):
            features[mine], logits[mine] = self.extractor(images[mine])
        return self.world.sum(features), self.world.sum(logits)

    def _digits(
        self, features: Tensor, logits: Tensor, seed: int, classes: int
    ) -> list[DigitScores] | None:
        """By the digit told; None where the network was told none, or the judge knows none."""
        if not classes or logits.shape[1] != classes:
            return None
        told = drawn(classes, seed, range(len(features)))
        train = self.train.features, load_split(self.data_dir, "train").labels
        test = self.test.features, load_split(self.data_dir, "test").labels
        return by_digit(features, logits, told, train, test)

    def _remarks(self, n: int) -> list[str]:
        """Warnings to the reader of a figure of n images."""
        size, n_test = self.extractor.size, len(self.test.features)
        if n <= size:
            return [f"{n:,} images for {size:,} features: no full covariance, FID says little"]
        if n < 10_000:
            return [f"{n:,} images: FID is biased upwards, compare it with the floor only"]
        if n > n_test:
            return [f"{n:,} images: the floor is of the {n_test:,} test images, which are fewer"]
        return []

    def _reconstruction(self, images: Tensor) -> dict[str, float] | None:
        originals = load_split(self.data_dir, "test", len(images)).images
        if originals.shape != images.shape:
            raise UserError(
                f"samples are {list(images.shape)}, the test images {list(originals.shape)}"
            )
        return metrics.reconstruction(originals, images)
