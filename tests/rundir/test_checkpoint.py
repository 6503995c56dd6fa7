"""Checkpoints: complete ones are read, and nothing else is."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuse.config.presets import load_config
from diffuse.rundir import checkpoints
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.checkpoints import Checkpoints
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import DiffuseError, Superseded, UserError
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


class Disk:
    """A disk that is slow until it is told to go on, and then full or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on, self.write = threading.Event(), checkpoints.write
        self.error: OSError | None = None
        monkeypatch.setattr(checkpoints, "write", self)

    def __call__(self, path: Path, payload: dict[str, Any]) -> None:
        assert self.goes_on.wait(60)
        if self.error:
            raise self.error
        self.write(path, payload)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def writer(tmp_path: Path) -> Checkpoints:
    attempt = Attempt.claim(RunDir(tmp_path / "run"))
    return Checkpoints(attempt, load_config("ddpm/default"), {}, steps_per_epoch=10, saved_step=0)


def content(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((3,), float(step))}, "ema": None}


def saved_steps(writer: Checkpoints) -> list[int]:
    """Of the files on disk, each of which holds the weights of its step."""
    steps = []
    for file in writer.attempt.run.checkpoint_files():
        found = checkpoints.read(file.path)
        assert_same(found["model"], content(found["step"])["model"], file.path.name)
        steps.append(found["step"])
    assert sorted(steps) == [event["step"] for event in writer.attempt.run.metrics("checkpoint")]
    return sorted(steps)


def test_training_goes_on_while_a_checkpoint_is_written(writer: Checkpoints, disk: Disk) -> None:
    state = content(10)
    with writer:
        writer.save(state)  # returns, though the disk does not write
        state["model"]["w"] += 1
        assert writer.saved_step == 10 and not writer.is_due
        assert saved_steps(writer) == []
        disk.goes_on.set()
    assert saved_steps(writer) == [10]


def test_one_checkpoint_is_written_at_a_time(writer: Checkpoints, disk: Disk) -> None:
    with writer:
        writer.save(content(10))
        threading.Timer(0.2, disk.goes_on.set).start()
        writer.save(content(20))
        assert writer.attempt.run.has_epoch(1)
    assert saved_steps(writer) == [10, 20]


def test_a_checkpoint_that_could_not_be_written_ends_the_training_soon(
    writer: Checkpoints, disk: Disk
) -> None:
    disk.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"), writer:
        writer.save(content(10))
        assert not writer.is_due
        disk.goes_on.set()
        deadline = time.monotonic() + 60
        while not writer.is_due and time.monotonic() < deadline:
            time.sleep(0.01)
        disk.error = None
        writer.save(content(13))  # as the loop does where a save is due
        pytest.fail("nobody was told")
    assert saved_steps(writer) == []


def test_the_end_of_a_training_tells_that_its_last_checkpoint_was_not_written(
    writer: Checkpoints, disk: Disk
) -> None:
    disk.error = OSError(28, "No space left on device")
    disk.goes_on.set()
    with pytest.raises(OSError, match="No space left"), writer:
        writer.save(content(10))
    with pytest.raises(ZeroDivisionError), writer:  # the first error is the one to report
        _ = 1 / 0


def test_a_checkpoint_that_waits_for_the_disk_is_not_written_into_a_newer_attempts_run(
    writer: Checkpoints, disk: Disk
) -> None:
    disk.goes_on.set()
    writer.attempt.run.attempt_path(2).write_text("{}")
    with pytest.raises(Superseded, match="attempt 2 took over"), writer:
        writer.save(content(10))
    assert saved_steps(writer) == []


def test_weights_that_are_not_finite_are_never_saved(writer: Checkpoints) -> None:
    state = content(10)
    state["model"]["w"][1] = float("nan")
    with pytest.raises(DiffuseError, match="no longer finite at step 10"), writer:
        writer.save(state)
    assert saved_steps(writer) == []


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
