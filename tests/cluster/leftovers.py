"""Undo a cluster: end its processes, take its names out of the hosts file, remove its folder.

A cluster that is stopped undoes itself. For one whose owner is killed there is a watcher, this
module run as a program: it reads from a pipe until the owner is gone, and then does the same.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock

HOSTS = Path("/etc/hosts")
ROOT = Path(__file__).resolve().parent.parent.parent
DAEMONS = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"}


def start_watcher(folder: Path) -> subprocess.Popen[bytes]:
    """A process that undoes `folder`'s cluster as soon as this process is gone."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.leftovers", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def undo(folder: Path) -> None:
    """Leave nothing of the cluster in `folder`; does nothing where nothing is left."""
    for _ in range(3):  # a daemon may start a job's step while it is looked for
        if not (found := list(processes(folder))):
            break
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=5)
    set_host_names(folder.name, ())
    shutil.rmtree(folder, ignore_errors=True)


def processes(folder: Path, node: str | None = None) -> Iterator[psutil.Process]:
    """The cluster's daemons and its jobs' processes, known by their SLURM_CONF.

    Args:
        node: only this node's jobs.
    """
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            env = process.environ()
            if env.get("SLURM_CONF") != str(folder / "etc" / "slurm.conf"):
                continue
            name = process.name()
        except psutil.Error:
            continue
        # A person's shell may have the same SLURM_CONF; it is none of ours.
        if "SLURM_JOB_ID" in env or name == "slurmstepd":
            if node is None or env.get("SLURMD_NODENAME") == node or _is_step_of(process, node):
                yield process
        elif node is None and name in DAEMONS:
            yield process


def set_host_names(owner: str, names: tuple[str, ...]) -> None:
    """Let `names` mean this machine; the line is marked with its owner, and () takes it out."""
    mark = f"# {owner}: tests of diffuse"
    with FileLock(Path(tempfile.gettempdir()) / "diffuse-slurm-hosts.lock", timeout=30):
        before = HOSTS.read_text().splitlines()
        lines = [line for line in before if not line.endswith(mark)]
        if names:
            lines.append(f"127.0.0.1 {' '.join(names)} {mark}")
        if lines != before:
            HOSTS.write_text("\n".join(lines) + "\n")


def _is_step_of(process: psutil.Process, node: str) -> bool:
    """Whether this is the parent, on `node`, of a job's processes."""
    for child in process.children():
        with contextlib.suppress(psutil.Error):
            if child.environ().get("SLURMD_NODENAME") == node:
                return True
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    undo(Path(sys.argv[1]))
