"""In a container whose user has neither a home nor a name, all that a person starts works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import programs
from tests.programs import ROOT, TINY

# Nobody has this number; files stay readable, as root's Python may lie in root's home.
NAMELESS = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
READ = "+dac_override,+dac_read_search"


def nameless(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    if os.geteuid() or not shutil.which("setpriv"):
        programs.leave_out("needs root and setpriv")
    return subprocess.run(
        [*NAMELESS, f"--inh-caps={READ}", f"--ambient-caps={READ}", sys.executable, *command],
        cwd=cwd,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that belongs to everybody, as pytest's do not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_the_doctor_and_every_other_program_of_the_launcher_answer(
    folder: Path, data_dir: Path
) -> None:
    options = ("--cluster=local", f"--data-dir={data_dir}", "--runs-dir=runs")
    done = nameless(ROOT / "launch" / "doctor.py", *options, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no key" in done.stdout
    for program in sorted((ROOT / "launch").glob("[a-z]*.py")):
        arguments = ("--grid=quick", "--dry-run") if program.stem == "sweep" else ()
        done = nameless(program, *arguments, cwd=folder)
        assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_a_sweep_trains_and_tracks_offline(folder: Path, data_dir: Path) -> None:
    (folder / "grid.yaml").write_text("runs: [{preset: ddpm/default, epochs: [1]}]")
    done = nameless(
        ROOT / "launch" / "sweep.py",
        "--grid=grid.yaml",
        "--cluster=local",
        *TINY,
        "--set=samples.images=4",
        "--set=tracking.mode=offline",
        "--no-evaluate",
        f"--data-dir={data_dir}",
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    (config,) = folder.glob("runs/*/config.yaml")
    assert list(config.parent.glob("wandb/**/*.wandb"))
