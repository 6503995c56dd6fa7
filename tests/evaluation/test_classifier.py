"""The classifier in the repository: as good as it is said to be, and refused where it is not it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffuse.data.tensors import load_split
from diffuse.evaluation import classifier
from diffuse.evaluation.classifier import Classifier, accuracy, augment, load_classifier
from diffuse.runtime.errors import UserError


def test_the_classifier_is_right_on_994_of_1000_test_images(data_dir: Path) -> None:
    test = load_split(data_dir, "test")
    assert accuracy(load_classifier(), test.images, test.labels) >= 0.994


def test_features_are_the_input_of_the_head() -> None:
    network, x = load_classifier(), torch.rand(3, 1, 28, 28)
    features = network.features(x)  # [3, 128]
    assert features.shape == (3, classifier.FEATURES)
    torch.testing.assert_close(network(x), network.head(features))


def test_augmented_images_stay_near_the_original(data_dir: Path) -> None:
    x = load_split(data_dir, "train", 64).images[:, None] / 255
    moved = augment(x)
    assert moved.shape == x.shape
    assert not torch.equal(moved, x)
    assert 0.8 < moved.mean() / x.mean() < 1.25


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), other)
    with pytest.raises(UserError, match="not this classifier's weights"):
        load_classifier(other)
    monkeypatch.setattr(classifier, "WEIGHTS", other)
    with pytest.raises(UserError, match="missing or damaged"):
        load_classifier()


def test_a_trained_classifier_is_written_and_loads(tmp_path: Path, data_dir: Path) -> None:
    """On a few images: the command that made it takes minutes."""
    network = classifier.train_classifier(data_dir, epochs=1, batch=64, limit=640)
    assert isinstance(network, Classifier)
    assert not network.training
    torch.save(network.state_dict(), tmp_path / "c.pt")
    again = load_classifier(tmp_path / "c.pt")
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(again(x), network(x))
