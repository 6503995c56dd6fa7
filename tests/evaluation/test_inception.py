"""Inception's weights: staged from a file, refused where they are not, and used as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffuse.data.tensors import load_split
from diffuse.evaluation.features import load_extractor
from tests import programs


def random_inception(path: Path) -> Path:
    """Weights of Inception's layout, with random values."""
    # torch_fidelity loads torchvision and torch's compiler: not while tests are collected.
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            pass

    nothing = path.with_name("nothing.pth")
    torch.save({}, nothing)
    torch.manual_seed(0)
    network = Unloaded("x", ["2048"], feature_extractor_weights_path=str(nothing))
    torch.save(network.state_dict(), path)
    return path


def test_inception_is_staged_from_a_file_and_extracts_as_torch_fidelity_does(
    tmp_path: Path, data_dir: Path
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights = random_inception(tmp_path / "weights.pth")
    staged = tmp_path / "data"
    staged.mkdir()
    (staged / "mnist.h5").symlink_to(data_dir / "mnist.h5")
    done = programs.run(
        "diffuse.prepare",
        f"--data-dir={staged}",
        f"--inception-file={weights}",
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    assert "not the published weights" in done.stdout
    images = load_split(data_dir, "test", 3).images
    extractor = load_extractor("inception", staged, torch.device("cpu"))
    features, logits = extractor(images)
    theirs = FeatureExtractorInceptionV3(
        "x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    ).eval()
    wanted = theirs(images[:, None].repeat(1, 3, 1, 1))
    torch.testing.assert_close(features, wanted[0])
    torch.testing.assert_close(logits, wanted[1])
    assert extractor.size == features.shape[1] == 2048


def test_a_file_that_is_no_inception_is_not_staged(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "mnist.h5").symlink_to(data_dir / "mnist.h5")
    text, other = tmp_path / "text.pth", tmp_path / "other.pth"
    text.write_text("weights")
    torch.save({"fc.weight": torch.zeros(3, 3)}, other)
    for path, said in ((text, "damaged, or not a file of tensors"), (other, "not the weights of")):
        done = programs.run("diffuse.prepare", f"--data-dir={tmp_path}", f"--inception-file={path}")
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "inception.pth").exists()
