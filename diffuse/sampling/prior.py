"""Where unconditional cold sampling starts: the distribution of fully degraded images.

A fully degraded image is its T line means and nothing else, so a Gaussian mixture fitted to the
training images' means gives new ones. The number of components is the one under which held-out
images are most likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffuse.models.averaging import Averaging
from diffuse.runtime.errors import UserError
from diffuse.runtime.rng import Stream, derive_seed, generator

CANDIDATES = (1, 4, 16, 64)  # numbers of components; with 128, held-out images are less likely
FIT_IMAGES = 12_000  # of which a sixth is held out; more change the fit little and cost minutes
FEWEST_IMAGES = 12
COVARIANCE_FLOOR = 1e-5  # lines at the border are black in nearly all images


@dataclass(frozen=True)
class LineMeans:
    """A mixture over line means in [0, 1]: weights [K], means [K, T], cholesky [K, T, T]."""

    weights: Tensor
    means: Tensor
    cholesky: Tensor
    held_out: dict[int, float]  # mean log-likelihood of held-out images by number of components

    def sample(self, seed: int, indices: Sequence[int], amplitude: float) -> Tensor:
        """Means [B, 1, T] in [-amplitude, amplitude]; each depends on (seed, index) alone."""
        drawn = []
        for index in indices:
            rng = generator(seed, Stream.PRIOR, index)
            k = int(torch.multinomial(self.weights, 1, generator=rng))
            z = torch.randn(self.means.shape[1], generator=rng, dtype=self.means.dtype)
            drawn.append(self.means[k] + self.cholesky[k] @ z)
        means = torch.stack(drawn)[:, None].float()
        return means.clamp(0, 1) * (2 * amplitude) - amplitude


def fit(images: Tensor, process: Averaging, seed: int) -> LineMeans:
    """Fit to images uint8 [N, 28, 28]; a few seconds on one core.

    Raises UserError for so few images that they have no distribution.
    """
    from sklearn.mixture import GaussianMixture

    if len(images) < FEWEST_IMAGES:
        raise UserError(
            f"unconditional sampling needs the line means of {FEWEST_IMAGES} training images or"
            f" more; this run has {len(images)} (data.limit)"
        )
    x = (images[:FIT_IMAGES, None].float() / 255).cpu()  # [N, 1, 28, 28] in [0, 1]
    order = process.order.cpu()
    means = Averaging(process.orientation, order).means(x)[:, 0].numpy()  # [N, T]
    cut = len(means) * 5 // 6
    train, held_out = means[:cut], means[cut:]
    state = derive_seed(seed, Stream.PRIOR) % 2**32

    def mixture(components: int) -> GaussianMixture:
        return GaussianMixture(
            components, reg_covar=COVARIANCE_FLOOR, random_state=state, max_iter=40, tol=1e-2
        ).fit(train)

    fitted = {k: mixture(k) for k in CANDIDATES if 20 * k <= len(train)} or {1: mixture(1)}
    scores = {k: float(m.score(held_out)) for k, m in fitted.items()}
    best = fitted[max(scores, key=lambda k: scores[k])]
    return LineMeans(
        torch.from_numpy(best.weights_).double(),
        torch.from_numpy(best.means_).double(),
        torch.linalg.cholesky(torch.from_numpy(best.covariances_).double()),
        scores,
    )
