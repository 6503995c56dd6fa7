"""The launcher as a login node may have it: installed without a checkout, of the lowest versions.

`pip install .` builds the installed package, which knows nothing of the checkout.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffuse.rundir.directory import RunDir
from tests import programs
from tests.programs import ROOT, TINY

PROGRAMS = sorted(path.stem for path in (ROOT / "launch").glob("[a-z]*.py"))
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `python -m ...` in an environment of the lowest versions, in a folder of its own."""
    folder = tmp_path_factory.mktemp("lowest")
    for name in ("diffuse", "launch", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    uv = [sys.executable, "-m", "uv"]
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*uv, "venv", "--python", sys.executable, folder / "venv"], check=True)
    options = ["--python", python, "--resolution", "lowest-direct"]
    done = subprocess.run(
        [*uv, "pip", "install", *options, f"{folder / 'source'}[track]"],
        capture_output=True,
        text=True,
    )
    if done.returncode and "network" in done.stderr.lower():
        programs.leave_out(f"no network to install from: {done.stderr}")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "source")
    (folder / "elsewhere").mkdir()

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in programs.environment().items() if k != "PYTHONPATH"}
        return subprocess.run(
            [python, "-m", *arguments],
            cwd=folder / "elsewhere",
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunDir:
    """A run that was trained and evaluated, in the tests' own environment."""
    folder = tmp_path_factory.mktemp("trained")
    place = (f"--runs-dir={folder}", f"--data-dir={data_dir}")
    settings = ("--set=samples.images=4", "--set=tracking.mode=offline", "--epochs=1")
    done = programs.run("diffuse.train", "--preset=ddpm/default", *TINY, *settings, *place)
    assert done.returncode == 0, done.stderr
    run = programs.only_run(folder)
    few = ("-n", "20", "--samplers=ddim-2", place[1])
    done = programs.run("diffuse.evaluate", run.path, *few)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_of_the_launcher_answers(installed: Run, program: str) -> None:
    done = installed(f"launch.{program}", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_what_is_typed_wrong_is_still_one_line(installed: Run) -> None:
    for arguments in (("launch.sweep", "--grid=none"), ("launch.status", "--unknown")):
        done = installed(*arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")


def test_presets_and_grids_are_those_of_the_checkout(installed: Run) -> None:
    arguments = ("--grid=all", "--dry-run", "--json")
    ours = programs.run("launch/sweep.py", *arguments)
    theirs = installed("launch.sweep", *arguments)
    assert theirs.returncode == 0, theirs.stderr
    assert json.loads(theirs.stdout) == json.loads(ours.stdout)
    where = installed("diffuse.train", "--preset=cold/unet", "--orientation=row", "--where")
    assert where.stdout.startswith("runs/cold-unet-row-")


def test_runs_are_shown_compared_cleaned_and_mirrored(
    installed: Run, trained: RunDir, data_dir: Path
) -> None:
    place = f"--runs-dir={trained.path.parent}"
    for program in ("status", "compare", "clean"):
        done = installed(f"launch.{program}", place)
        assert done.returncode == 0, done.stderr
        assert program == "clean" or trained.name in done.stdout
    assert (trained.path.parent / "report.html").is_file()
    assert f"{trained.name}: " in installed("launch.sync", "--dry-run", place).stdout
    checked = installed("launch.doctor", "--cluster=local", f"--data-dir={data_dir}", "--json")
    failed = [c["name"] for c in json.loads(checked.stdout)["checks"] if c["state"] == "failed"]
    assert failed == ["versions"], "there is no torch"
    shutil.rmtree(trained.path / "wandb")
    (trained.path / "wandb").mkdir()
    done = installed("diffuse.tracking.uploader", trained.path, "train", "offline", "60")
    assert list(trained.path.glob("wandb/**/*.wandb")), done.stdout + done.stderr


def test_a_sweep_starts_its_jobs(installed: Run, tmp_path: Path, data_dir: Path) -> None:
    place = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}", "--cluster=local")
    done = installed("launch.sweep", "--grid=quick", "--only=ddpm-*", *place)
    assert done.returncode == 1
    (log,) = tmp_path.glob("*/logs/train-*.log")
    assert "No module named 'torch'" in log.read_text()
