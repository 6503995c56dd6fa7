"""Filesystems without locks: programs go on, and name once the possible loss."""

from __future__ import annotations

import errno
import fcntl
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from filelock import FileLock, Timeout

from diffuse.data.staging import stage_mnist
from diffuse.rundir import evaluations
from diffuse.runtime import files, hdf5
from launch.grids.ledger import Ledger
from tests import programs

NONE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
PATCH = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.fixture(params=NONE, ids=errno.errorcode.__getitem__)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be locked."""

    def flock(*_: Any) -> None:
        raise OSError(request.param, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_block_runs_without_locks_and_says_once_what_that_costs(
    no_locks: None, tmp_path: Path
) -> None:
    notes: list[str] = []
    for _ in range(2):
        with files.locked(tmp_path / "lock", "work may be done twice", 1, note=notes.append):
            pass
    (line,) = notes
    assert line.startswith(f"{tmp_path}: no file locks here (")
    assert line.endswith("): work may be done twice")
    assert not list(tmp_path.iterdir())


def test_a_lock_is_one_where_there_are_locks(tmp_path: Path) -> None:
    with files.locked(tmp_path / "lock", "nothing"), pytest.raises(Timeout):
        FileLock(tmp_path / "lock", timeout=0).acquire()
    with FileLock(tmp_path / "lock"), pytest.raises(Timeout):
        files.locked(tmp_path / "lock", "nothing", 0).__enter__()


def test_what_is_staged_already_needs_no_lock(
    no_locks: None, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(data_dir / "mnist.h5", tmp_path)
    stage_mnist(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.h5"]
    assert capsys.readouterr().err == ""


def test_a_grid_is_swept_without_locks(no_locks: None, tmp_path: Path) -> None:
    with Ledger(tmp_path, "quick").locked(1):
        assert Ledger(tmp_path, "quick").is_held


def test_a_run_is_trained_mirrored_and_evaluated_without_locks(
    tmp_path: Path, data_dir: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PATCH)
    runs = tmp_path / "runs"
    env = {"PYTHONPATH": str(tmp_path)}
    arguments = ["--preset=ddpm/quick", "--epochs=1", *programs.TINY, "--set=model.channels=8,8"]
    arguments += ["--set=tracking.mode=offline", f"--runs-dir={runs}", f"--data-dir={data_dir}"]
    done = programs.run("diffuse.train", *arguments, afresh=True, **env)
    assert done.returncode == 0, done.stderr
    run = programs.only_run(runs)
    assert list((run.path / "wandb").glob("offline-run-*/run-*.wandb"))
    (line,) = [line for line in done.stderr.splitlines() if "no file locks" in line]
    assert line.startswith(f"W&B {run.path}/wandb: no file locks here (No locks available): ")
    few = ["-n60", "--samplers=ddim-2-clip,ddim-3-clip", f"--data-dir={data_dir}"]
    done = programs.run("diffuse.evaluate", run.path, *few, afresh=True, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{run.evaluations}: no file locks here") == 1
    (evaluation,) = evaluations.of_run(run)
    assert len(evaluation.figures) == 2


def test_hdf5_is_read_while_another_holds_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    hdf5.write(path, {"images": np.zeros((2, 28, 28), np.uint8)}, {})
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError):
            h5py.File(path, locking=True)
        assert hdf5.read(path)[0]["images"].shape == (2, 28, 28)


def test_hdf5_is_opened_in_one_file_only() -> None:
    sources = [
        p for folder in ("diffuse", "launch") for p in (programs.ROOT / folder).rglob("*.py")
    ]
    assert [p.name for p in sources if "h5py.File(" in p.read_text()] == ["hdf5.py"]
