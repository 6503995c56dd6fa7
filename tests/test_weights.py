"""docs/weights.md agrees with the files of the shipped weights."""

from __future__ import annotations

import pytest

import diffuse
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
