"""Runs that several files of tests read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffuse.rundir.attempt import Attempt
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.tracking import mirror
from tests.tracking.runs import (
    EVALUATION,
    OFFLINE,
    train,
)


@pytest.fixture(scope="module")
def nobody() -> Iterator[None]:
    """No key of whoever runs the tests, also for mirrors that this process starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETRC", os.devnull)
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def offline(nobody: None, tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunDir:
    """A run that was trained, resumed to more epochs, and evaluated, without key or network."""
    runs_dir = tmp_path_factory.mktemp("offline")
    train(runs_dir, data_dir, *OFFLINE, DIFFUSE_GRID="a-grid")
    run = train(runs_dir, data_dir, *OFFLINE, epochs=3, DIFFUSE_GRID="a-grid")
    files.write_json(run.evaluation_path(3), EVALUATION.plain())
    event = {"event": "evaluation", "epoch": 3, "step": 24, "figures": len(EVALUATION.figures)}
    Attempt(run, run.attempt_number()).append_metrics([event])
    mirror.mirror_once(run, run.config(), "evaluate")
    return run


@pytest.fixture(scope="module")
def untracked(nobody: None, tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunDir:
    """The run of the same config without W&B."""
    runs_dir = tmp_path_factory.mktemp("untracked")
    return train(runs_dir, data_dir, *OFFLINE, "--set=tracking.mode=disabled")
