"""The end of a training waits for the thread that writes its last checkpoint."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from diffuse.config.presets import load_config, parse_set
from diffuse.config.schema import Config
from diffuse.rundir import checkpoints
from diffuse.runtime.preemption import StopRequest
from diffuse.training import loop
from tests import programs
from tests.programs import TINY


def small(*settings: str) -> Config:
    """The config of a training without pictures."""
    tiny = [setting.removeprefix("--set=") for setting in TINY]
    return load_config("ddpm/default", [parse_set([*tiny, "samples.at_epochs=[]", *settings])])


def test_a_stop_never_says_saved_of_a_checkpoint_that_could_not_be_written(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()

    def full(path: Path, payload: dict[str, Any]) -> None:
        stop.signal = signal.SIGTERM  # while the first epoch's is written
        time.sleep(0.3)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoints, "write", full)
    with pytest.raises(OSError, match="No space left"):
        loop.train(small("train.epochs=2"), tmp_path, data_dir, stop)
    assert programs.only_run(tmp_path).status()["state"] == "failed"


def test_done_is_said_when_the_last_checkpoint_is_on_disk(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, write = [], checkpoints.write

    def slow(path: Path, payload: dict[str, Any]) -> None:
        time.sleep(0.3)
        states.append(programs.only_run(tmp_path).status()["state"])
        write(path, payload)

    monkeypatch.setattr(checkpoints, "write", slow)
    run = loop.train(small("train.epochs=1"), tmp_path, data_dir, StopRequest())
    assert run is not None and run.has_epoch(1)
    assert states == ["running"] and run.status()["state"] == "done"
