"""The distribution of fully degraded images, from which sampling without originals starts.

All that a fully degraded image holds is its summary, a few means of pixels (of averaging: T line
means), so a Gaussian mixture fitted to the training images' summaries gives new ones. The number of
components is the one under which held-out images are most likely.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffuse.models.process import Process
from diffuse.runtime.errors import UserError
from diffuse.runtime.rng import Stream, derive_seed, generator

CANDIDATES = (1, 4, 16, 64)  # numbers of components; with 128, held-out images are less likely
FIT_IMAGES = 12_000  # of which a sixth is held out; more change the fit little and cost minutes
FEWEST_IMAGES = 12
BRIGHTEST_MEAN = 0.4  # of white; few lines of digits are brighter
COVARIANCE_FLOOR = 1e-5  # lines at the border are black in nearly all images


@dataclass(frozen=True)
class Prior:
    """A mixture of M normals over summaries in [0, 1]^K.

    weights [M], means [M, K], cholesky [M, K, K].
    """

    weights: Tensor
    means: Tensor
    cholesky: Tensor
    held_out: dict[int, float] = field(default_factory=dict)  # mean log-likelihood by components

    def sample(self, seed: int, indices: Sequence[int], amplitude: float) -> Tensor:
        """Summaries [B, 1, K] in [-amplitude, amplitude]; each depends on (seed, index) alone."""
        summaries = []
        for index in indices:
            rng = generator(seed, Stream.PRIOR, index)
            k = int(torch.multinomial(self.weights, 1, generator=rng))
            z = torch.randn(self.means.shape[1], generator=rng, dtype=self.means.dtype)
            summaries.append(self.means[k] + self.cholesky[k] @ z)
        summary = torch.stack(summaries)[:, None].float()
        return summary.clamp(0, 1) * (2 * amplitude) - amplitude


def uniform_means(seed: int, indices: Sequence[int], means: int, amplitude: float) -> Tensor:
    """Means [B, 1, means], each uniform from black to BRIGHTEST_MEAN; by (seed, index) alone.

    The report drew its degraded images so (section 2.3, figure 2.6); it does not give its bounds.
    """
    drawn = [torch.rand(means, generator=generator(seed, Stream.PRIOR, i)) for i in indices]
    return torch.stack(drawn)[:, None] * (2 * amplitude * BRIGHTEST_MEAN) - amplitude


def fit(images: Tensor, process: Process, seed: int) -> Prior:
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
    summaries = copy.deepcopy(process).to("cpu").summary(x)[:, 0].numpy()  # [N, K]
    cut = len(summaries) * 5 // 6
    train, held_out = summaries[:cut], summaries[cut:]
    state = derive_seed(seed, Stream.PRIOR) % 2**32

    def mixture(components: int) -> GaussianMixture:
        return GaussianMixture(
            components, reg_covar=COVARIANCE_FLOOR, random_state=state, max_iter=40, tol=1e-2
        ).fit(train)

    fitted = {k: mixture(k) for k in CANDIDATES if 20 * k <= len(train)} or {1: mixture(1)}
    scores = {k: float(m.score(held_out)) for k, m in fitted.items()}
    best = fitted[max(scores, key=lambda k: scores[k])]
    return Prior(
        torch.from_numpy(best.weights_).double(),
        torch.from_numpy(best.means_).double(),
        torch.linalg.cholesky(torch.from_numpy(best.covariances_).double()),
        scores,
    )
