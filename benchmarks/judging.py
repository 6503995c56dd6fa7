"""The cost of judging images: the real side kept or made again; features beside torch-fidelity's.

No weights of Inception are needed: where none are staged, random ones of its layout are used, with
which every layer does the same work.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import get_featuresdict_from_dataset

from benchmarks.in_turn import pairs, seconds
from diffuse.config.schema import Config
from diffuse.data.staging import INCEPTION
from diffuse.data.tensors import load_split
from diffuse.evaluation.classifier import load_classifier
from diffuse.evaluation.features import Extractor, load_extractor
from diffuse.evaluation.metrics import Moments, fid
from diffuse.evaluation.reference_features import real_features

CPU = torch.device("cpu")
N = 1000  # images judged
INCEPTION_N, INCEPTION_BATCH = 32, 16  # it takes a thousand times the classifier's work
CLASSIFIER_N, CLASSIFIER_BATCH = 2000, 250


def cached_fid(config: Config, data_dir: Path, precision: str, rounds: int) -> tuple[str, ...]:
    """Seconds to FID of 1,000 images with kept features of the training set, and without.

    Both begin with the images and end with the number; the kept file is read anew each time.
    """
    extractor, seen = counted(load_extractor("classifier", data_dir, CPU))
    images = load_split(data_dir, "test", N).images  # their content costs nothing

    def score(real: Moments) -> float:
        return fid(real, extractor(images)[0])

    def again() -> float:
        real = load_split(data_dir, "train").images
        return score(Moments.of(extractor(real)[0]))

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mnist.h5").symlink_to((data_dir / "mnist.h5").resolve())
        real_features(extractor, "train", Path(folder))  # makes the file

        def kept() -> float:
            return score(real_features(extractor, "train", Path(folder)).moments)

        found = kept()
        seen.clear()
        fast = statistics.median(seconds(kept) for _ in range(3 * rounds))
        few = sum(seen) // (3 * rounds)
        read = seconds(lambda: real_features(extractor, "train", Path(folder)))
    seen.clear()
    values: list[float] = []
    slow = seconds(lambda: values.append(again()))
    many = sum(seen)
    torch.testing.assert_close(values[0], found, rtol=1e-6, atol=0)
    assert few == N, "the real side went through the network again"
    return (
        f"FID of {N:,} images: features of the training set kept against made again, fp32",
        f"{fast:.2f} s; {few:,} images through the network; reading the file takes {read:.2f} s",
        f"{slow:.1f} s; {many:,} images through the network",
        f"{slow / fast:.0f}",
        f"{many / few:.0f}, the ratio of images through the network",
    )


def inception_features(
    config: Config, data_dir: Path, precision: str, rounds: int
) -> tuple[str, ...]:
    """Images per second through Inception, here and by torch-fidelity's own loop."""
    images = load_split(data_dir, "test", INCEPTION_N).images
    with tempfile.TemporaryDirectory() as folder:
        staged = (data_dir / INCEPTION).is_file()
        weights = data_dir if staged else random_inception(Path(folder))
        extractor = load_extractor("inception", weights, CPU)
        theirs = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(weights / INCEPTION),
        )
    kind = "staged" if staged else "random"
    subject = f"features of {INCEPTION_N} images by Inception ({kind} weights)"
    return extraction(subject, extractor, theirs, images, 3, INCEPTION_BATCH, rounds)


def classifier_features(
    config: Config, data_dir: Path, precision: str, rounds: int
) -> tuple[str, ...]:
    """Images per second through the classifier, here and put into torch-fidelity's loop."""
    images = load_split(data_dir, "test", CLASSIFIER_N).images
    extractor = load_extractor("classifier", data_dir, CPU)
    subject = f"features of {CLASSIFIER_N:,} images by the classifier"
    theirs = FidelityClassifier()
    return extraction(subject, extractor, theirs, images, 1, CLASSIFIER_BATCH, rounds)


def extraction(
    subject: str,
    extractor: Extractor,
    theirs: FeatureExtractorBase,
    images: Tensor,
    channels: int,
    batch: int,
    rounds: int,
) -> tuple[str, ...]:
    """One row: both on the same uint8 images [N, 28, 28], with this process's threads.

    torch-fidelity is given its images ready, [N, channels, 28, 28], and no worker processes, whose
    start would count against it. Beside the speeds stands the ratio of processor time, which other
    work on the machine disturbs less.
    """
    ready = list(images[:, None].expand(-1, channels, -1, -1).contiguous())

    def other() -> tuple[Tensor, ...]:
        found = get_featuresdict_from_dataset(
            Images(ready), theirs, batch, cuda=False, save_cpu_ram=True, verbose=False
        )
        return tuple(found.values())

    def ours() -> tuple[Tensor, ...]:
        return extractor(images, batch)

    torch.testing.assert_close(ours(), other())  # the same features; and a warm-up
    used: dict[Callable[[], object], float] = {ours: 0.0, other: 0.0}  # processor seconds

    def watched(function: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            start = time.process_time()
            function()
            used[function] += time.process_time() - start

        return call

    took = pairs(watched(ours), watched(other), 3 * rounds, repeats=(1, 1))
    mine, their = (len(images) / statistics.median(side) for side in zip(*took, strict=True))
    ratios = sorted(b / a for a, b in took)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return (
        f"{subject}, fp32, batch {batch}, against torch-fidelity's",
        f"{mine:.3g} images/s",
        f"{their:.3g} images/s",
        f"{statistics.median(ratios):.3f} (quartiles {low:.3f}, {high:.3f});"
        f" by processor time {used[other] / used[ours]:.3f}",
        "1, as the network is the same; no less is wanted",
    )


class Images(torch.utils.data.Dataset[Tensor]):
    """Images in memory, one by one, as torch-fidelity takes them."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> Tensor:
        return self.images[k]


class FidelityClassifier(FeatureExtractorBase):  # type: ignore[misc]
    """This project's classifier as an extractor of torch-fidelity's."""

    def __init__(self) -> None:
        super().__init__("classifier", ["features", "logits"])
        self.network = load_classifier()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(images / 255)
        return features, self.network.head(features)


def counted(extractor: Extractor) -> tuple[Extractor, list[int]]:
    """The extractor, and a list that grows by the size of each batch that its network sees."""
    seen: list[int] = []
    network: Callable[[Tensor], tuple[Tensor, Tensor]] = extractor.network

    def watched(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        return network(images)

    return dataclasses.replace(extractor, network=watched), seen


def random_inception(folder: Path) -> Path:
    """Write random weights of Inception's layout into `folder`, as if staged there."""

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *_: object, **__: object) -> None:
            pass

    path = folder / INCEPTION
    torch.save({}, path)  # what it reads and ignores
    torch.save(Unloaded("", ["2048"], str(path)).state_dict(), path)
    return folder
