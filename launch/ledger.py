"""What the launcher remembers beside the runs, under RUNS/.launch/: locks, and who holds them.

runs/.launch/<grid>/lock, holder.json    one sweep at a time
runs/.launch/<grid>/jobs-*/              submitit's own files of one sweep
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from diffuse import files
from diffuse.errors import EnvironmentFailed
from diffuse.rundir import now


class Ledger:
    """The launcher's folder for one grid under one runs folder."""

    def __init__(self, runs_dir: Path, grid: str) -> None:
        self.runs_dir = runs_dir
        self.grid = grid
        self.path = runs_dir / ".launch" / grid

    @property
    def holder_path(self) -> Path:
        return self.path / "holder.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this grid; EnvironmentFailed, with the holder's name, where another sweep does.

        The lock goes with the process, however that ends.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "lock", timeout=0)
            lock.acquire()
        except Timeout:
            holder = files.read_json(self.holder_path)
            raise EnvironmentFailed(
                f"{self.grid} is being swept in {self.runs_dir} by process"
                f" {holder.get('pid', '?')} on {holder.get('host', '?')} since"
                f" {holder.get('since', '?')}; wait for it, or use another --runs-dir"
            ) from None
        except OSError as error:
            raise EnvironmentFailed(
                f"{self.runs_dir}: cannot be written: {error.strerror}; use another --runs-dir"
            ) from None
        try:
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            files.write_json(self.holder_path, holder)
            yield
        finally:
            self.holder_path.unlink(missing_ok=True)
            lock.release()
