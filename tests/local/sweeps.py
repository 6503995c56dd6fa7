"""Small sweeps, for several files of tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import programs
from tests.programs import ROOT, TINY

SWEEP = ROOT / "launch" / "sweep.py"
PAIR = """
runs:
  - {preset: ddpm/default, epochs: [1, 2]}
  - {preset: cold/default_28, orientation: row, epochs: [1, 2]}
"""


def sweep(*arguments: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return programs.run("launch/sweep.py", *arguments, cwd=cwd, warm=True, **env)


def local(grid: Path, runs: Path, data_dir: Path, *more: str) -> list[str | Path]:
    """Arguments of a small sweep on local processes, without pictures."""
    place = ["--cluster", "local", "--runs-dir", runs, "--data-dir", data_dir]
    return ["--grid", grid, *place, *TINY, "--set=samples.at_epochs=[]", "--no-evaluate", *more]


def write(folder: Path, text: str, name: str = "grid") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path
