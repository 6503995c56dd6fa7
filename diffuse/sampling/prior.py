"""The distribution of fully degraded images, from which sampling without originals starts.

All that a fully degraded image holds is its summary, a few means of pixels (of averaging: T line
means), so a Gaussian mixture fitted to the training images' summaries gives new ones. The number of
components is the one under which held-out images are most likely.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diffuse.models.process import Process
from diffuse.runtime import console, hdf5
from diffuse.runtime.errors import UserError
from diffuse.runtime.rng import Stream, derive_seed, generator

VERSION = 1  # of the fit below: raised with each change to it, so that kept ones are left
CANDIDATES = (1, 4, 16, 64)  # numbers of components; with 128, held-out images are less likely
FIT_IMAGES = 12_000  # of which a sixth is held out; more change the fit little and cost minutes
FEWEST_IMAGES = 12
BRIGHTEST_MEAN = 0.4  # of white; few lines of digits are brighter
COVARIANCE_FLOOR = 1e-5  # lines at the border are black in nearly all images
TENSORS = ("weights", "means", "cholesky")  # of a Prior, by their names in files


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


def kept(path: Path, key: str, fitted: Callable[[], Prior]) -> Prior:
    """The prior in the file `path`, where it is of this key; otherwise a fitted one, kept there.

    A damaged file is fitted anew with a note; a folder that cannot be written costs the fit only.
    """
    try:
        arrays, facts = hdf5.read(path, TENSORS)
        if facts["key"] == key:
            tensors = {name: torch.from_numpy(arrays[name]) for name in TENSORS}
            scores = {int(k): v for k, v in json.loads(facts["held_out"]).items()}
            return Prior(**tensors, held_out=scores)
    except FileNotFoundError:
        pass
    except (hdf5.Damaged, OSError, LookupError, ValueError, TypeError) as error:
        console.note(f"{path}: fitted anew: {error}")
    prior = fitted()
    arrays = {name: getattr(prior, name).numpy() for name in TENSORS}
    with contextlib.suppress(OSError):
        held_out = json.dumps(prior.held_out)
        hdf5.write(path, arrays, {"key": key, "held_out": held_out}, hdf5.CHECKSUMMED)
    return prior


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
