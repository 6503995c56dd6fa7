"""Paths that a job would misread are refused before anything is written or submitted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diffuse.runtime.errors import UserError
from launch.grids.cluster import choose
from launch.inspection import node_probe
from launch.inspection.site_checks import Place
from launch.slurm.executor import require_readable
from tests import programs
from tests.programs import ROOT


def test_a_colon_in_the_runs_path_is_refused_before_anything_is_written(
    tmp_path: Path, data_dir: Path
) -> None:
    runs = tmp_path / "runs" / "2026-11-25T14:00"
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "launch" / "sweep.py", "--grid=quick", "--cluster=slurm"),
            *(f"--runs-dir={runs}", f"--data-dir={data_dir}"),
        ],
        env=programs.environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: '{runs}/.launch/")
    assert "Python's search path takes no folder with a colon; rename it" in line
    assert not runs.exists()


def test_the_doctors_job_is_refused_there_too(tmp_path: Path) -> None:
    runs = tmp_path / "a:b"
    with pytest.raises(UserError, match="no folder with a colon"):
        node_probe.run(Place(choose("slurm").resolve([]), "slurm", runs, tmp_path), wait_s=1)
    assert not runs.exists()


@pytest.mark.parametrize("name", ["a:b", "a,b", 'a"b'])
def test_a_folder_that_an_image_cannot_bind_is_refused(name: str, tmp_path: Path) -> None:
    require_readable(tmp_path / "runs", [tmp_path / name], in_image=False)
    with pytest.raises(UserError, match="--bind takes no path with a colon, a comma or"):
        require_readable(tmp_path / "runs", [tmp_path / name], in_image=True)


@pytest.mark.parametrize("name", ["a b", "a'b", "é#&", "$HOME", "-o"])
def test_other_characters_are_quoted(name: str, tmp_path: Path) -> None:
    require_readable(tmp_path / name / "runs", [tmp_path / name], in_image=True)
