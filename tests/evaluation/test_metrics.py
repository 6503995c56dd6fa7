"""FID, KID and IS against closed forms, definitions, and torch-fidelity on the same features."""

from __future__ import annotations

import math

import pytest
import torch

from diffuse.config.schema import IS_SPLITS
from diffuse.data.tensors import to_uint8
from diffuse.evaluation import metrics
from diffuse.evaluation.metrics import Moments
from diffuse.runtime.errors import UserError


def gaussian(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng) * scale + shift


def test_fid_of_gaussians_is_the_closed_form() -> None:
    """Isotropic N(0, 1) and N(m, s^2) in d dimensions: d m^2 + d (s - 1)^2."""
    d, m, s = 8, 0.5, 1.5
    found = metrics.fid(Moments.of(gaussian(200_000, d, 1)), gaussian(200_000, d, 2, s, m))
    assert found == pytest.approx(d * m**2 + d * (s - 1) ** 2, rel=0.01)


def test_fid_of_a_set_with_itself_is_zero() -> None:
    x = gaussian(500, 16, 0)
    assert abs(metrics.fid(Moments.of(x), x)) < 1e-9


def test_fid_kid_and_is_equal_torch_fidelity_on_the_same_features() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kernel_mmd

    real, made = gaussian(1500, 32, 1).relu(), gaussian(1000, 32, 2, 1.2, 0.1).relu()
    statistics = [fid_features_to_statistics(x) for x in (real, made)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)
    assert metrics.fid(Moments.of(real), made) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-3
    )
    size = metrics.kid_subset_size(len(made))
    with metrics._seeded():  # the subsets that ours draws
        subsets = [
            [x[torch.randperm(len(x))[:size]].double().numpy() for x in (real, made)]
            for _ in range(metrics.KID_SUBSETS)
        ]
    mmd = torch.tensor([float(kernel_mmd(*pair)) for pair in subsets])
    mean, std = metrics.kid(real, made)
    assert mean == pytest.approx(float(mmd.mean()), rel=1e-5)
    assert std == pytest.approx(float(mmd.std(unbiased=False)), rel=1e-5)

    logits = made[:, :10] * 3
    with metrics._seeded():  # the splits that ours makes
        shuffled = logits[torch.randperm(len(logits))]
    theirs = isc_features_to_metric(shuffled, splits=IS_SPLITS, shuffle=False)
    mean, std = metrics.inception_score(logits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    # theirs divides by the number of splits, ours by one less
    unbiased = math.sqrt(IS_SPLITS / (IS_SPLITS - 1))
    assert std == pytest.approx(theirs["inception_score_std"] * unbiased, rel=1e-6)


def test_kid_over_one_full_subset_equals_the_unbiased_estimator() -> None:
    """Equation 4 of Binkowski et al. with the kernel (x.y / d + 1)^3, as loops."""
    n, d = 12, 4
    x, y = gaussian(n, d, 1).double(), gaussian(2 * n, d, 2, 1.3).double()
    kernel = lambda a, b: (float(a @ b) / d + 1) ** 3  # noqa: E731
    estimates = []
    with metrics._seeded():
        for _ in range(metrics.KID_SUBSETS):
            a, b = x[torch.randperm(n)[:n]], y[torch.randperm(2 * n)[:n]]
            within = sum(
                kernel(a[i], a[j]) + kernel(b[i], b[j])
                for i in range(n)
                for j in range(n)
                if i != j
            )
            across = sum(kernel(p, q) for p in a for q in b)
            estimates.append(within / (n * (n - 1)) - 2 * across / n**2)
    mean, std = metrics.kid(x, y)
    assert mean == pytest.approx(sum(estimates) / len(estimates), rel=1e-9)
    assert std == pytest.approx(float(torch.tensor(estimates).std(unbiased=False)), rel=1e-6)


def test_is_of_certain_and_balanced_classes_is_their_number_and_of_one_class_is_one() -> None:
    classes = torch.arange(10).repeat(200)
    certain = 60.0 * torch.nn.functional.one_hot(classes, 10)
    mean, _ = metrics.inception_score(certain)
    assert 9.5 < mean <= 10
    assert metrics.inception_score(torch.zeros(40, 10))[0] == pytest.approx(1)


def test_figures_repeat_and_leave_the_global_generator_alone() -> None:
    x, y = gaussian(100, 8, 1), gaussian(100, 8, 2)
    torch.manual_seed(5)
    first = (metrics.kid(x, y), metrics.inception_score(y))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert first == (metrics.kid(x, y), metrics.inception_score(y))


def test_reconstruction_of_known_errors() -> None:
    x0 = torch.randint(0, 246, (4, 28, 28), dtype=torch.uint8)
    found = metrics.reconstruction(x0, x0 + 10)
    assert found["mse"] == pytest.approx((10 / 255) ** 2)
    assert found["psnr"] == pytest.approx(20 * math.log10(25.5))
    assert 0.5 < found["ssim"] < 1
    assert metrics.reconstruction(x0, x0)["ssim"] == pytest.approx(1)


def test_ssim_in_parts_is_that_of_the_whole() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    rng = torch.Generator().manual_seed(0)
    x0, made = torch.randint(0, 256, (2, 120, 28, 28), dtype=torch.uint8, generator=rng)
    a, b = (x[:, None].double() / 255 for x in (made, x0))
    whole = structural_similarity_index_measure(a, b, data_range=1.0)
    assert metrics.reconstruction(x0, made)["ssim"] == pytest.approx(float(whole), rel=1e-9)


def test_images_are_clamped_before_the_cast() -> None:
    x = torch.tensor([-9.0, -0.5, 0.0, 0.5, 9.0]).reshape(5, 1, 1, 1)
    assert to_uint8(x, 0.5).flatten().tolist() == [0, 0, 128, 255, 255]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="use 20 or more"):
        metrics.inception_score(torch.zeros(19, 10))


@pytest.mark.parametrize(("n", "said"), [(21, "use 20 or 30"), (1009, "use 1000 or 1010")])
def test_splits_of_unequal_size_are_refused(n: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        metrics.inception_score(torch.zeros(n, 10))
