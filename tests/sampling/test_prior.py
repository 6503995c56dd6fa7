"""The distribution from which unconditional samples of cold diffusion start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffuse.config.processes import AveragingConfig
from diffuse.models.averaging import Averaging
from diffuse.runtime.errors import UserError
from tests.sampling.test_samplers import (
    COLD,
)


def test_the_mixture_finds_components_and_each_draw_belongs_to_its_index(data_dir: Path) -> None:
    from diffuse.data.tensors import load_split
    from diffuse.sampling import prior

    process = Averaging.from_config(
        AveragingConfig(kind="averaging", orientation="row", group=7), seed=0, amplitude=0.5
    )
    images = load_split(data_dir, "train", 3000).images
    fitted = prior.fit(images, process, seed=0)
    assert len(fitted.weights) == max(fitted.held_out, key=lambda k: fitted.held_out[k]) > 1
    drawn = fitted.sample(0, range(2000), 0.5)  # [2000, 1, 4]
    assert torch.equal(fitted.sample(0, [7], 0.5), drawn[7:8])
    assert drawn.min() >= -0.5
    assert drawn.max() <= 0.5
    real = process.summary(images[:, None].float() / 255 - 0.5)[:, 0]
    assert (drawn[:, 0].mean(0) - real.mean(0)).abs().max() < 0.02
    assert (torch.corrcoef(drawn[:, 0].T) - torch.corrcoef(real.T)).abs().max() < 0.1


def test_too_few_images_have_no_distribution(data_dir: Path) -> None:
    from diffuse.data.tensors import load_split
    from diffuse.sampling import prior

    process = Averaging.from_config(COLD, seed=0, amplitude=0.5)
    fewest = load_split(data_dir, "train", prior.FEWEST_IMAGES).images
    assert torch.isfinite(prior.fit(fewest, process, seed=0).sample(0, [0], 0.5)).all()
    with pytest.raises(UserError, match=r"12 training images or more; this run has 11"):
        prior.fit(fewest[1:], process, seed=0)


def test_a_kept_prior_is_the_fitted_one_and_a_damaged_one_is_fitted_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffuse.sampling import prior

    covariance = torch.eye(3, dtype=torch.float64)[None] / 7
    one = prior.Prior(torch.ones(1).double(), torch.rand(1, 3).double(), covariance, {1: 0.1})
    fits = []

    def fitted() -> prior.Prior:
        fits.append(1)
        return one

    path = tmp_path / "prior.h5"
    for key, n in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        found = prior.kept(path, key, fitted)
        assert len(fits) == n, "fitted once for each key"
        assert torch.equal(found.sample(0, range(4), 0.5), one.sample(0, range(4), 0.5))
        assert found.held_out == {1: 0.1}
    assert not capsys.readouterr().err
    path.write_bytes(b"torn")
    assert torch.equal(prior.kept(path, "b", fitted).means, one.means)
    assert len(fits) == 3
    assert "fitted anew" in capsys.readouterr().err
    prior.kept(path, "b", fitted)
    assert len(fits) == 3
    prior.kept(tmp_path / "file" / "x", "b", fitted)
