"""FID, KID and IS from features and logits, computed by torchmetrics.

Features are extracted once and kept; torchmetrics is given them through a network that changes
nothing. Moments are float64. The random choices of torchmetrics (KID's subsets, IS's splits) come
from a fixed seed. Each rank is given all images, so torchmetrics must not gather them once more.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffuse.config.schema import IS_SPLITS, judgeable
from diffuse.runtime.errors import UserError

KID_SUBSETS = 100
SSIM_PART = 50  # images at once


class _Given(nn.Identity):
    """An extractor whose input is features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


@dataclass(frozen=True)
class Moments:
    """Sums over n feature vectors of size d, which make up mean and covariance."""

    n: int
    total: Tensor  # [d] float64
    products: Tensor  # [d, d] float64, sum of outer products

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of `features` [n, d]."""
        x = features.double()
        return cls(len(x), x.sum(0), x.T @ x)


def fid(real: Moments, generated: Tensor) -> float:
    """Frechet distance (Heusel et al. 2017) between Gaussians fitted to both; lower is better."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(len(real.total)), sync_on_compute=False)
    metric.set_dtype(torch.float64)
    metric.real_features_sum = real.total
    metric.real_features_cov_sum = real.products
    metric.real_features_num_samples = torch.tensor(real.n)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kid_subset_size(n: int) -> int:
    """Images in each of KID's subsets, where there are n generated ones."""
    return min(1000, n // 2)


def kid(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018): mean and standard deviation over subsets."""
    with _seeded():
        from torchmetrics.image.kid import KernelInceptionDistance

        size = kid_subset_size(len(generated))
        metric = KernelInceptionDistance(
            feature=_Given(generated.shape[1]),
            subsets=KID_SUBSETS,
            subset_size=size,
            sync_on_compute=False,
        )
        metric.real_features = real.double()  # by update() it would be copied once more
        metric.update(generated.double(), real=False)
        mean, std = metric.compute()
    return float(mean), float(std)


def inception_score(logits: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over splits (Salimans et al. 2016); at most the classes' number.

    Raises UserError for fewer than two images a split, or splits of unequal size.
    """
    require_enough(len(logits))
    with _seeded():
        from torchmetrics.image.inception import InceptionScore

        metric = InceptionScore(
            feature=_Given(logits.shape[1]), splits=IS_SPLITS, sync_on_compute=False
        )
        metric.update(logits.double())
        mean, std = metric.compute()
    return float(mean), float(std)


def reconstruction(x0: Tensor, restored: Tensor) -> dict[str, float]:
    """MSE, PSNR in dB and SSIM between uint8 images [N, 28, 28], as [0, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional import mean_squared_error
        from torchmetrics.functional.image import (
            peak_signal_noise_ratio,
            structural_similarity_index_measure,
        )

    target, image = (images[:, None].double() / 255 for images in (x0, restored))
    # In parts: torch's convolution in float64 unfolds its input, which takes 4 MB an image.
    parts = zip(torch.split(image, SSIM_PART), torch.split(target, SSIM_PART), strict=True)
    ssim = [
        structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
        for pair in parts
    ]
    return {
        "mse": float(mean_squared_error(image.flatten(), target.flatten())),
        "psnr": float(peak_signal_noise_ratio(image, target, data_range=1.0)),
        "ssim": float(torch.cat([torch.as_tensor(s).reshape(-1) for s in ssim]).mean()),
    }


def require_enough(n: int) -> None:
    """UserError where n images cannot be judged: too few, or not as many in each of IS's splits."""
    try:
        judgeable(n)
    except ValueError as error:
        raise UserError(str(error)) from None


@contextmanager
def _seeded() -> Iterator[None]:
    """torchmetrics draws from torch's own generator: seed it inside, leave it alone outside."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the memory that features take
        torch.manual_seed(0)
        yield
