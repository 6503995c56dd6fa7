"""W&B's key and ignored files do not leak; who may read the files that are written."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from diffuse.evaluation.features import load_extractor
from diffuse.evaluation.reference_features import real_features
from launch.jobs import snapshot
from tests import programs
from tests.cluster.cluster import Cluster
from tests.lab import DDPM, Lab
from tests.programs import TINY
from tests.wandb_server import KEY, server

TRACKED = (*TINY, "--set=samples.images=4", "--set=eval.images=20", "--set=data.limit=64")


def sweep(tmp_path: Path, data_dir: Path, *arguments: str, **how: Any) -> Path:
    """A sweep of one run on local processes; its runs folder."""
    grid, runs = tmp_path / "grid.yaml", tmp_path / "runs"
    grid.write_text(DDPM % 1)
    where = (f"--grid={grid}", "--cluster=local", f"--runs-dir={runs}", f"--data-dir={data_dir}")
    done = programs.run("launch/sweep.py", *where, *TRACKED, *arguments, **how)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    return runs


def holding(folder: Path, secret: str) -> list[Path]:
    """The files in which `secret` stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


def test_the_key_of_wandb_is_written_nowhere_and_in_no_command_line(
    tmp_path: Path, data_dir: Path
) -> None:
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for process in psutil.process_iter(["cmdline"]):
                seen.add(" ".join(process.info["cmdline"] or []))

    watcher = threading.Thread(target=watch)
    with server("good") as wandb:
        watcher.start()
        try:
            online = "--set=tracking.mode=online"
            runs = sweep(tmp_path, data_dir, online, afresh=True, **wandb.environment())
        finally:
            stop.set()
            watcher.join()
        assert wandb.rows, "the server had the run, so the key was used"
    assert any("diffuse.train" in line for line in seen)
    assert not [line for line in seen if KEY in line]
    assert not holding(runs, KEY)


def test_the_key_of_wandb_is_in_no_job_script(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    lab = Lab(slurm, DDPM % 1, tmp_path, data_dir)
    command = lab.command("--no-evaluate")
    done = lab.program("sweep.py", *command, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    lab.wait_empty()
    assert next(iter(lab.status().values()))["state"] == "done"
    assert list(lab.runs.rglob("*submission.sh"))
    assert not holding(tmp_path, KEY)


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_files_are_made_with_the_users_umask(tmp_path: Path, data_dir: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        runs = sweep(tmp_path, data_dir, warm=True)
    finally:
        os.umask(before)
    found = [path for path in (runs, *runs.rglob("*")) if not path.is_symlink()]
    wanted = {True: 0o777 & ~umask, False: 0o666 & ~umask}
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in found
        if path.name != "lock" and path.suffix != ".lock"  # who shares a cache may wait for it
    }
    others = {p: oct(mode) for p, mode in modes.items() if mode != wanted[p.is_dir()]}
    assert not others


def test_shared_caches_are_readable_by_the_group(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "data").mkdir()
    os.link(data_dir / "mnist.h5", tmp_path / "data" / "mnist.h5")
    before = os.umask(0o027)
    try:
        extractor = load_extractor("classifier", tmp_path / "data", torch.device("cpu"))
        real_features(extractor, "test", tmp_path / "data", None, shown=False)
    finally:
        os.umask(before)
    caches = [path for path in (tmp_path / "data").rglob("*") if path.name != "mnist.h5"]
    assert any(path.suffix == ".h5" for path in caches)
    for path in caches:
        mode = path.stat().st_mode
        assert mode & 0o040, path
        assert not path.is_dir() or mode & 0o010, path


def test_a_snapshot_leaves_out_files_that_git_ignores(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "diffuse").mkdir(parents=True)
    for name, text in (("a.py", "A = 1"), ("keys.txt", KEY), (".env", KEY), ("new.py", "B = 2")):
        (root / "diffuse" / name).write_text(text)
    (root / ".gitignore").write_text("keys.txt\n")
    for command in (["init", "-q"], ["add", "diffuse/a.py"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    taken = snapshot.take(tmp_path / "code", root)
    names = sorted(path.name for path in (taken.path / "diffuse").iterdir())
    assert names == ["a.py", "new.py"]
    assert not holding(tmp_path / "code", KEY)


def test_a_snapshot_is_made_with_the_users_umask(tmp_path: Path) -> None:
    (tmp_path / "root" / "diffuse").mkdir(parents=True)
    (tmp_path / "root" / "diffuse" / "a.py").write_text("A = 1")
    before = os.umask(0o027)
    try:
        taken = snapshot.take(tmp_path / "code" / str(time.time_ns()), tmp_path / "root")
    finally:
        os.umask(before)
    assert stat.S_IMODE(taken.path.stat().st_mode) == 0o750
    assert stat.S_IMODE((taken.path / "diffuse" / "a.py").stat().st_mode) == 0o440
