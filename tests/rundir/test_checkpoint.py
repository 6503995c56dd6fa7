"""Checkpoints: complete ones are read, and nothing else is."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse.rundir import checkpoints
from diffuse.runtime import files
from diffuse.runtime.errors import UserError
from tests.programs import ROOT, assert_same

CONTENT = {
    "config": {"seed": 1, "name": "x", "nothing": None, "list": [1, 2.5]},
    "model": {"w": torch.randn(64, 64), "b": torch.randn(3).bfloat16(), "n": torch.tensor(7)},
}


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "c.pt", CONTENT)
    assert_same(checkpoints.read(tmp_path / "c.pt"), CONTENT, "")
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"], "a temporary file was left"


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    """Each is either refused by name or, in the container's padding, without effect."""
    path = tmp_path / "c.pt"
    checkpoints.write(path, CONTENT)
    whole = path.read_bytes()
    refused = 0
    rng = np.random.default_rng(0)
    places = rng.integers(0, 8 * len(whole), 300)
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            assert_same(checkpoints.read(path), CONTENT, "")
        except UserError as error:
            assert "c.pt" in str(error)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_a_truncated_file_is_refused_by_name(size: int, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoints.write(path, CONTENT)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"c\.pt"):
        checkpoints.read(path)


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (os.mkdir, (str(ran),))

    torch.save({"config": Hostile(), "checksum": ""}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Hostile()))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(UserError, match=name):
            checkpoints.read(tmp_path / name)
    assert not ran.exists()


def test_a_checkpoint_that_no_reader_could_load_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="TorchVersion"):
        checkpoints.write(tmp_path / "c.pt", {"config": {"torch": torch.__version__}})
    assert not list(tmp_path.iterdir())


def test_a_kill_inside_a_write_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    code = (
        "import sys, itertools, torch; from pathlib import Path\n"
        "from diffuse.rundir import checkpoints\n"
        "for k in itertools.count():\n"
        "    path = Path(sys.argv[1])\n"
        "    checkpoints.write(path, {'config': {'k': k}, 'w': torch.full((500000,), k)})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(30):  # while it goes on writing
        content = checkpoints.read(path)
        assert (content["w"] == content["config"]["k"]).all()
    process.send_signal(signal.SIGKILL)
    process.wait()
    content = checkpoints.read(path)
    assert (content["w"] == content["config"]["k"]).all()


def test_a_torn_last_line_is_closed_before_the_next_append(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    files.append_lines(path, ['{"a": 1}'])
    with path.open("a") as file:
        file.write('{"a": 2, "b')  # a death in the middle of a write
    files.append_lines(path, ['{"a": 3}'])
    assert path.read_text().splitlines() == ['{"a": 1}', '{"a": 2, "b', '{"a": 3}']


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.atomic(path) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
