"""Weight files stand in a comparison beside runs, with the figures that they bring."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from diffuse.rundir import weight_facts
from diffuse.runtime import files
from diffuse.runtime.errors import UserError
from diffuse.runtime.options import shipped_weights
from diffuse.sampling import weight_file
from launch.results import results
from tests import programs

NAME = "custom_mnist_80_row_default_28"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file by the name of one of the report's, and figures of it."""
    path = tmp_path / f"{NAME}.pth"
    path.write_bytes(b"weights")
    scores: dict[str, Any] = {"fid": 371.5, "kid": 46.5, "kid_std": 1.0, "is": 3.0, "is_std": 0.1}
    protocol = {"extractor": "classifier", "real_images": 60_000, "images": 1000}
    protocol |= {"sampler": "algorithm2", "source": "test images"}
    figure = {**scores, "floor": scores, "protocol": protocol}
    content = {"epoch": 80, "checkpoint_sha256": files.sha256(path), "figures": [figure]}
    files.write_json(tmp_path / f"{NAME}.evaluation.json", content)
    return path


def test_the_header_of_a_weight_file_has_the_facts_without_torch() -> None:
    for path in shipped_weights().values():
        assert weight_facts.read(path) == weight_file.read(path)[0]


def test_a_damaged_header_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"\xff" * 30, b"\x02" + bytes(7) + b"{}"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged, or not written"):
            weight_facts.read(path)


def test_weight_files_and_shipped_weights_enter_a_comparison(
    published: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    more = (f"--runs-dir={tmp_path}", f"--csv={table}")
    done = programs.run("launch/compare.py", published, "cold/unet-row", *more)
    assert done.returncode == 0, done.stderr
    assert f"{NAME}.pth" in done.stdout and "cold-unet-row.safetensors" in done.stdout
    rows = list(csv.DictReader(table.open()))
    assert {row["preset"] for row in rows} == {"cold/default_28", "cold/unet"}
    assert float(rows[0]["fid"]) == 371.5
    html = (tmp_path / "report.html").read_text()
    assert f"{NAME}.pth: FID 372" in html, "beside the report's published figure of that preset"


def test_figures_of_other_weights_are_left_out_and_named_once(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published.parent)  # where figures are looked for, too
    published.write_bytes(b"other weights")
    result = results.read(published)
    assert not result.cells
    others, remedy = result.problems
    assert "of other weights" in others and "python -m diffuse.evaluate" in remedy


def test_a_weight_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weight file"):
        results.find(tmp_path, ["nothing.pth"])
