"""Files that other processes read while they are written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diffuse.runtime import files


@pytest.mark.parametrize("host", ["node1", "node1.cluster.example", "gpu-07.hpc.uni-x.example"])
def test_what_a_killed_writer_left_goes_whatever_its_host_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    name = tmp_path / "epoch_0001.h5"
    with files.atomic(name) as temporary:
        temporary.write_bytes(b"whole")
        pattern = temporary.name.replace(str(os.getpid()), "%d")
    left, alive = (tmp_path / (pattern % pid) for pid in (gone.pid, os.getpid()))
    others = tmp_path / (pattern.replace(host, f"other.{host}x") % gone.pid)
    for path in (left, alive, others):
        path.touch()
    files.remove_leftovers(tmp_path, others_write=True)
    assert set(tmp_path.iterdir()) == {name, alive, others}
