"""The report's own protocol: its cast, its numbers, and its mark, so that it is never mixed in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffuse.evaluation.report_protocol import IMAGES, wrapped
from diffuse.rundir.evaluations import REPORT
from launch.comparison import page
from launch.results import grouping, results
from tests import programs
from tests.models.test_networks import PUBLISHED
from tests.programs import TINY


def test_the_cast_wraps_as_torchmetrics_does() -> None:
    """Against torchmetrics with `normalize=True`: (images * 255).byte()."""
    x = torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5, 0.7, -0.7])[:, None, None, None]
    assert wrapped(x).flatten().tolist() == [129, 193, 0, 63, 127, 178, 78]
    grid = torch.linspace(-0.9, 0.9, 1001)[:, None, None, None]
    assert torch.equal(wrapped(grid)[:, 0, 0], (grid * 255).byte().flatten())


def test_a_run_judged_by_the_reports_protocol_has_a_section_of_its_own(
    tmp_path: Path, data_dir: Path
) -> None:
    arguments = ("--preset=cold/default_7", "--orientation=row", "--epochs=1", *TINY)
    places = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}")
    done = programs.run("diffuse.train", *arguments, *places)
    assert done.returncode == 0, done.stderr
    run = programs.only_run(tmp_path)
    for more in (("--report-protocol",), ("-n", str(IMAGES), "--samplers=algorithm2")):
        done = programs.run("diffuse.evaluate", run.path, *more, f"--data-dir={data_dir}")
        assert done.returncode == 0, done.stderr
    found = [results.read(run.path)]
    report, ours = sorted(found[0].cells, key=lambda c: c.figure.protocol.convention is None)
    assert report.sampler == ours.sampler == "algorithm2"
    protocol = report.figure.protocol
    assert (protocol.convention, protocol.images, protocol.real_images) == (REPORT, 100, 100)
    assert "comparable with no figure of another protocol" in report.figure.labels[0]
    assert report.figure.reconstruction is None and report.figure.samples is None
    assert report.figure.fid != ours.figure.fid
    assert len(grouping.groups(found)) == 2
    html = page.render(found, tmp_path, "page")
    assert f"100 images, judged by classifier, {REPORT.replace(chr(39), '&#39;')}" in html
    again = programs.run("diffuse.evaluate", run.path, "--report-protocol", places[1])
    assert "is there already" in again.stdout


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the report's published files are not here")
def test_the_reports_weights_are_judged_by_its_protocol(tmp_path: Path, data_dir: Path) -> None:
    path = PUBLISHED / "checkpoints" / "custom_mnist_20_row_default_7.pth"
    options = ("--report-protocol", f"--output={tmp_path}", f"--data-dir={data_dir}")
    done = programs.run("diffuse.evaluate", path, *options)
    assert done.returncode == 0, done.stderr
    (figure,) = programs.read_json(tmp_path / f"{path.stem}.evaluation.json")["figures"]
    assert figure["protocol"]["convention"] == REPORT
