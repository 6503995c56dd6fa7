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
from filelock import FileLock, Timeout

from diffuse import ROOT
from tests.cluster.configuration import NODES

HOSTS = Path("/etc/hosts")
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
    """The cluster's daemons and its jobs' processes, known by their SLURM_CONF and log.

    Args:
        node: only this node's jobs.
    """
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.name() == "slurmstepd":  # has an environment of its own
                if _node_of_step(process, folder) in ({node} if node else set(NODES)):
                    yield process
                continue
            env = process.environ()
            if env.get("SLURM_CONF") != str(folder / "etc" / "slurm.conf"):
                continue
            # A person's shell may have the same SLURM_CONF; it is none of ours.
            if "SLURM_JOB_ID" in env:
                if node in (None, env.get("SLURMD_NODENAME")):
                    yield process
            elif node is None and process.name() in DAEMONS:
                yield process
        except (psutil.Error, FileNotFoundError):
            continue


def set_host_names(owner: str, names: tuple[str, ...]) -> None:
    """Let `names` mean this machine; the line is marked with its owner, and () takes it out."""
    mark = f"# {owner}: tests of diffuse"
    with FileLock(Path(tempfile.gettempdir()) / "diffuse-slurm-hosts.lock", timeout=600):
        before = HOSTS.read_text().splitlines()
        lines = [line for line in before if not line.endswith(mark)]
        if names:
            lines.append(f"127.0.0.1 {' '.join(names)} {mark}")
        if lines != before:
            HOSTS.write_text("\n".join(lines) + "\n")


def _node_of_step(process: psutil.Process, folder: Path) -> str | None:
    """The node of the cluster in `folder` to whose log this slurmstepd writes."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = Path(str(descriptor.readlink()).removesuffix(" (deleted)"))
            if target.parent == folder / "log" and target.stem.startswith("slurmd-"):
                return target.stem.removeprefix("slurmd-")
    return None


def main(folder: Path) -> None:
    """Wait for the owner's end, and undo its cluster unless a new owner has taken the folder."""
    sys.stdin.buffer.read()
    with contextlib.suppress(Timeout), FileLock(folder.with_suffix(".lock"), timeout=2):
        undo(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
