"""docs/weights.md agrees with the files of the shipped weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import diffuse
from diffuse.evaluation.features import load_extractor
from diffuse.runtime import options
from tests.programs import ROOT

SHIPPED = [path.stem.replace("-", "/", 1) for path in sorted(options.WEIGHTS.glob("*.safetensors"))]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_has_the_figures_of_the_file(name: str) -> None:
    model = diffuse.load(name, device="cpu")
    card = (ROOT / "docs" / "weights.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    assert len(rows) == len(model.figures) > 0
    for row, figure in zip(rows, model.figures, strict=True):
        protocol = figure["protocol"]
        wanted = [protocol["sampler"], f"{protocol['images']:,}"]
        wanted += [f"{figure['fid']:.1f}", f"{figure['is']:.2f}", f"{figure['floor']['fid']:.1f}"]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:6] == wanted, row
    assert f"{model.epoch} epochs" in rows[0]


def test_a_digit_on_request_is_that_digit(data_dir: Path) -> None:
    model = diffuse.load("ddpm/unet_labels", device="cpu")
    classifier = load_extractor("classifier", data_dir, torch.device("cpu"))
    right = 0
    for digit in range(10):
        images = model.images(4, digit=digit, sampler="dpm-20-eta3-clip")
        right += int((classifier(torch.from_numpy(images))[1].argmax(1) == digit).sum())
    assert right >= 36, "of 40"


def test_the_card_shows_a_picture_of_each_model() -> None:
    card = (ROOT / "docs" / "weights.md").read_text()
    for name in SHIPPED:
        picture = f"{name.replace('/', '-')}.png"
        assert f"]({picture})" in card and (ROOT / "docs" / picture).is_file()
