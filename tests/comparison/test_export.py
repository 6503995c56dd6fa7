"""Figures and tables for a thesis: whole files, well-formed LaTeX, captions that suffice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffuse.config.presets import parse_set
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Figure
from diffuse.runtime import hdf5
from launch.comparison import export, latex
from launch.grids.grid import Overrides, load_grid
from launch.results.results import Cell, Result

GRID = """
runs:
  - {preset: ddpm/quick, seeds: 0-1}
  - {preset: cold/unet_noiseless, orientation: row}
"""


def figure(sampler: str, source: str, fid: float) -> Figure:
    scores = {"fid": fid, "kid": 12.3, "kid_std": 1.0, "is": 8.9, "is_std": 0.1}
    protocol: dict[str, Any] = {"extractor": "classifier", "real_images": 60_000, "images": 1000}
    protocol |= {"sampler": sampler, "source": source, "seed": 0}
    return Figure.model_validate({**scores, "floor": scores, "protocol": protocol})


@pytest.fixture
def found(tmp_path: Path) -> list[Result]:
    """Three runs of two epochs with losses, figures and pictures, made by hand."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    overrides = Overrides(epochs=(1, 2), layers=(parse_set(["train.lr=1e-3"]),))
    made = []
    for k, run in enumerate(load_grid(str(grid), overrides).runs):
        folder = RunDir(tmp_path / "runs" / run.name)
        folder.plots.mkdir(parents=True)
        config = run.config.model_dump(mode="json")
        result = Result(run.name, folder, config=config, losses=[(0.5, 0.2), (2.0, 0.1)])
        is_cold = result.kind == "averaging"
        for epoch in (1, 2):
            about = ("algorithm2", "test images") if is_cold else ("ddim-50", "noise")
            made_by = figure(*about, fid=100.5 + k - epoch)
            result.cells.append(Cell(run.name, epoch, made_by, loss=0.1 / epoch))
            names = ("original", "degraded", "direct", "images") if is_cold else ("images",)
            images = np.full((16, 28, 28), 40 * epoch, np.uint8)
            sets = dict.fromkeys(names, images)
            hdf5.write(folder.samples_path(epoch), sets, {"sampler": about[0]})
        Image.new("L", (80, 40)).save(folder.plots / "degradation.png")
        made.append(result)
    return made


def test_everything_is_written_as_pdf_svg_or_latex_with_a_caption(
    found: list[Result], tmp_path: Path
) -> None:
    written = export.write(tmp_path / "thesis", found)
    names = {path.name for path in written}
    cold = next(r.name for r in found if r.kind == "averaging")
    ddpm = next(r.name for r in found if r.kind == "ddpm")
    figures = {"losses_ddpm", "losses_cold", f"epochs_{ddpm}", f"epochs_{cold}", f"panels_{cold}"}
    figures |= {f"degradation_{ddpm}", "fid_classifier-1000-ddim-50", "is_classifier-1000-ddim-50"}
    for stem in figures:
        assert {f"{stem}.pdf", f"{stem}.svg", f"{stem}.txt"} <= names, stem
    for stem in ("table_classifier-1000-ddim-50", "seeds_classifier-1000-ddim-50"):
        assert {f"{stem}.tex", f"{stem}.txt"} <= names
    for path in written:
        content = path.read_bytes()
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF")
            fonts = content.count(b"/Type /Font\n") + content.count(b"/Type /Font ")
            assert not fonts or b"/FontFile2" in content, f"{path.name}: a font is not in the file"
        if path.suffix == ".svg":
            assert b"</svg>" in content
            assert b"<text" not in content, f"{path.name}: text that needs a font"
    caption = (tmp_path / "thesis" / "fid_classifier-1000-ddim-50.txt").read_text()
    for part in ("1,000 images", "seed 0", "classifier", "ddpm/quick, seed 1", "ddim-50"):
        assert part in caption


def test_the_same_results_give_the_same_files(found: list[Result], tmp_path: Path) -> None:
    first, second = (export.write(tmp_path / name, found) for name in ("a", "b"))
    assert [path.name for path in first] == [path.name for path in second]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_tables_are_well_formed_latex(found: list[Result], tmp_path: Path) -> None:
    """Each line has as many cells as there are columns, and nothing special stands bare."""
    tables = [p for p in export.write(tmp_path / "thesis", found) if p.suffix == ".tex"]
    assert len(tables) == 3
    for path in tables:
        text = path.read_text()
        (columns,) = re.findall(r"\\begin\{tabular\}\{(l+r+)\}", text)
        for line in text.splitlines():
            if line.endswith(r" \\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        assert not re.search(r"(?<!\\)[_%#]", text)
        assert text.count("$") % 2 == 0
        for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
            assert rule in text
    means = next(p for p in tables if p.name.startswith("seeds")).read_text()
    assert r"ddpm/quick & 2 & 2 & $0.0500 \pm 0.0$" in means
    assert r"$99.00 \pm 0.71$" in means


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a_b", r"a\_b"), ("50 % & more", r"50 \% \& more"), ("x\\y", r"x\textbackslash{}y")],
)
def test_texts_are_escaped(text: str, shown: str) -> None:
    assert latex.escaped(text) == shown


def test_a_damaged_picture_costs_that_picture_only(
    found: list[Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found[0].dir.plots / "degradation.png").write_bytes(b"no picture")
    found[0].dir.samples_path(1).write_bytes(b"no picture")
    names = {path.name for path in export.write(tmp_path / "thesis", found)}
    assert f"degradation_{found[0].name}.pdf" not in names
    assert f"epochs_{found[0].name}.pdf" in names
    assert "damaged" in capsys.readouterr().err
