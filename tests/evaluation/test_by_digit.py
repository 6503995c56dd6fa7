"""Scores by digit, of real images that pass for a network's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from diffuse.config.presets import load_config
from diffuse.config.sampler_spec import SamplerSpec
from diffuse.data.tensors import load_split
from diffuse.evaluation import metrics
from diffuse.evaluation.report_protocol import ReportScorer
from diffuse.evaluation.scorer import Scorer
from diffuse.runtime.distributed import World
from diffuse.sampling.labels import drawn

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
N, SEED = 2000, 3


@pytest.fixture(autouse=True)
def _one_kid_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    """KID is not looked at here, and its subsets take most of the time."""
    monkeypatch.setattr(metrics, "KID_SUBSETS", 1)


@pytest.fixture(scope="module")
def scorer(data_dir: Path) -> Scorer:
    return Scorer.load("classifier", data_dir, WORLD)


@pytest.fixture(scope="module")
def spec() -> SamplerSpec:
    return load_config("ddpm/unet_labels").sampler_specs(None)[0]


@pytest.fixture(scope="module")
def images(data_dir: Path) -> Tensor:
    """Training images of the digits told, but eights for threes."""
    split = load_split(data_dir, "train")
    told = drawn(10, SEED, range(N))
    told[told == 3] = 8
    chosen = torch.zeros(N, dtype=torch.int64)
    for digit in told.unique():
        mine = told == digit
        chosen[mine] = torch.where(split.labels == digit)[0][: int(mine.sum())]
    return split.images[chosen]


def test_each_digit_is_judged_by_the_real_images_of_that_digit(
    scorer: Scorer, spec: SamplerSpec, images: Tensor, data_dir: Path
) -> None:
    figure = scorer.figure(images, spec, seed=SEED, samples=None, classes=10)
    assert figure.digits is not None
    told, labels = drawn(10, SEED, range(N)), load_split(data_dir, "train").labels
    for digit in figure.digits:
        assert digit.images == int((told == digit.digit).sum())
        mine = scorer.extractor(images[told == digit.digit])[0]
        wanted = frechet(scorer.train.features[labels == digit.digit], mine)
        assert digit.fid == pytest.approx(wanted, rel=1e-3)
        if digit.digit == 3:
            assert digit.recognised < 0.05 and digit.fid > 20 * digit.floor
        else:
            assert digit.recognised > 0.98 and digit.fid < 3 * digit.floor
    shown = 1 - float((told == 3).double().mean())  # as told: all but the threes
    assert figure.recognised == pytest.approx(shown, abs=0.01)
    assert figure.summary().endswith(f"{figure.recognised:.1%} show the digit told")


def test_too_few_images_of_a_digit_and_a_network_without_labels_have_no_such_scores(
    scorer: Scorer, spec: SamplerSpec, images: Tensor, data_dir: Path
) -> None:
    few = scorer.figure(images[:1000], spec, seed=SEED, samples=None, classes=10)
    assert few.digits is None and few.recognised is None
    assert "told" not in few.summary()
    assert scorer.figure(images, spec, seed=SEED, samples=None).digits is None


def test_the_reports_protocol_has_no_scores_by_digit(
    spec: SamplerSpec, images: Tensor, data_dir: Path
) -> None:
    report = ReportScorer.of("classifier", data_dir, WORLD, N)
    assert report.figure(images, spec, seed=SEED, samples=None, classes=10).digits is None


def frechet(real: Tensor, found: Tensor) -> float:
    """FID from the eigenvalues of the covariances' product."""
    a, b = real.double().numpy(), found.double().numpy()
    roots = np.sqrt(scipy.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))).real
    traces = np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * roots.sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces)
