"""The names of a run directory: files that bear a number as we write it count, and no others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

from diffuse.config.presets import load_config
from diffuse.rundir import checkpoints
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.directory import SILENT_AFTER_S, RunDir, silence_s
from diffuse.runtime import files
from diffuse.runtime.errors import UserError
from diffuse.sampling.trained_model import load
from launch.comparison.thumbnails import album
from launch.grids.grid import load_grid
from launch.grids.plan import look_at
from launch.inspection.removable import removable
from launch.inspection.run_status import run_statuses
from launch.local.display import show_pictures
from launch.results.results import read

STEMS = (
    *("mine", "best_model", "epoch_x", "epoch_", "step_best", "epoch_0020.bak", "epoch_0020-copy"),
    *("epoch_20", "epoch_00020", "epoch_-001", "epoch_²²²²", "epoch_٠٠٢٠", "step_20", "EPOCH_0020"),
)
EPOCHS = (2, 9999, 10_000)


def images(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((4, 28, 28), np.uint8)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run of three epochs, and beside each file those of a person."""
    config = load_config("ddpm/default")
    config = config.model_copy(
        update={
            "eval": config.eval.model_copy(update={"at_epochs": EPOCHS}),
            "train": config.train.model_copy(update={"epochs": EPOCHS[-1]}),
        }
    )
    run = RunDir(tmp_path / config.run_name)
    run.write_config(config)
    status = {"state": "done", "epoch": EPOCHS[-1], "epochs": EPOCHS[-1], "steps_per_epoch": 10}
    files.write_json(run.status_path, status)
    for epoch in EPOCHS:
        files.write_text(run.checkpoint_path(epoch), "weights")
        files.write_text(run.picture_path(epoch), "picture")
        files.write_json(run.evaluation_path(epoch), {"epoch": epoch, "figures": []})
        images(run.samples_path(epoch))
    for step in (100_000_015, 25):
        files.write_text(run.step_checkpoint_path(step), "weights")
    for stem in STEMS:
        files.write_text(run.checkpoints / f"{stem}.pt", "my own")
        files.write_text(run.evaluations / f"{stem}.json", '{"epoch": 3, "figures": []}')
        files.write_text(run.samples / f"{stem}.png", "my own")
        files.write_text(run.samples / f"{stem}.h5", "my own")
        files.write_text(run.attempts / f"{stem}.json", "{}")
    for folder in (run.checkpoints / "epoch_0003.pt", run.evaluations / "epoch_0003.json"):
        folder.mkdir()
    return run


def the_persons_own(run: RunDir) -> set[Path]:
    return {path for path in run.path.rglob("*.*") if path.stem in STEMS}


def test_files_are_listed_by_number_and_others_are_not(run: RunDir) -> None:
    assert run.trained_epochs() == run.evaluated_epochs() == list(EPOCHS)
    assert run.sampled_epochs() == run.pictured_epochs() == list(EPOCHS)
    assert [file.epoch or file.step for file in run.checkpoint_files()] == [
        *EPOCHS,
        25,
        100_000_015,
    ]
    assert [file.at(10) for file in run.checkpoint_files()][:3] == [20, 99_990, 100_000]
    assert run.attempt_number() == 0
    assert Attempt.claim(run).number == 1


def test_a_missing_folder_lists_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "none")
    assert run.checkpoint_files() == run.evaluated_epochs() == run.pictured_epochs() == []
    assert run.attempt_number() == 0


def test_status_counts_evaluations_beside_stray_files(run: RunDir) -> None:
    (row,) = run_statuses(run.path.parent)
    assert (row.state, row.evaluated) == ("done", 3)


def test_clean_never_shows_a_persons_own_file(run: RunDir) -> None:
    mine = (run.logs / "train-7-r00-notes.txt", run.logs / "train-7-r00.log.bak")
    for path in (*mine, run.logs / "train-7-r00.log", run.logs / "train-7-r01.log"):
        files.write_text(path, "said")
    found = {item.path for item in removable(run.path.parent)}
    assert found == {run.step_checkpoint_path(25), run.logs / "train-7-r00.log"}
    assert not found & the_persons_own(run)


def test_clean_keeps_the_highest_step_not_the_newest_file(run: RunDir) -> None:
    files.write_json(run.status_path, {"state": "interrupted", "steps_per_epoch": 10})
    for step in (100_000_020, 100_000_010):  # as a copy without its dates leaves them
        files.write_text(run.step_checkpoint_path(step), "weights")
    found = {item.path for item in removable(run.path.parent)}
    assert found == {run.step_checkpoint_path(step) for step in (25, 100_000_010)}


def test_clean_keeps_all_checkpoints_whose_order_is_not_known(run: RunDir) -> None:
    files.write_json(run.status_path, {"state": "done"})
    assert removable(run.path.parent) == []


def test_a_sweep_sees_trained_and_evaluated_epochs_only(run: RunDir, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("runs: [{preset: ddpm/default, epochs: [2, 3, 20, 10000]}]")
    (planned,) = load_grid(str(grid)).runs
    assert look_at(planned, run).have == {2, 10_000}


def test_training_deletes_its_own_checkpoints_only(run: RunDir) -> None:
    before = the_persons_own(run)
    files.write_text(run.step_checkpoint_path(26), "weights")
    writer = checkpoints.Checkpoints(Attempt(run, 1), run.config(), {}, 10, saved_step=0)
    writer.retire(200_000_000)
    assert the_persons_own(run) == before
    assert [f.step for f in run.checkpoint_files() if f.step] == [100_000_015]


def test_training_resumes_from_its_own_checkpoints_only(run: RunDir) -> None:
    passed: list[str] = []
    assert not checkpoints.latest(run, until_step=None, steps_per_epoch=10, warn=passed.append)
    assert [Path(line.split(":")[0]).stem for line in passed] == [
        *("step_100000015", "epoch_10000", "epoch_9999", "step_00000025", "epoch_0002")
    ]


def test_a_missing_epoch_is_refused_with_the_existing_ones(run: RunDir) -> None:
    with pytest.raises(UserError, match="no checkpoint of epoch 20; there are 2, 9999, 10000"):
        load(run.path, epoch=20)


def test_compare_shows_every_epoch_in_order_and_no_other_file(run: RunDir) -> None:
    result = read(run.path)
    shown = album(result, 5, moves=True)
    assert [picture.caption for picture in shown.grids] == [
        f"samples, epoch {epoch}" for epoch in EPOCHS
    ]
    assert not [problem for problem in result.problems if "damaged" in problem]


def test_the_newest_picture_is_that_of_the_highest_epoch(
    run: RunDir, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("runs: [{preset: ddpm/default, epochs: [2]}]")
    (planned,) = load_grid(str(grid)).runs
    show_pictures(Console(width=400), [look_at(planned, run)])
    assert capsys.readouterr().out.split() == ["pictures:", str(run.picture_path(10_000))]


@pytest.mark.parametrize(
    ("heartbeat", "is_silent"),
    [
        (lambda: time.time() - SILENT_AFTER_S + 60, False),
        (lambda: time.time() - SILENT_AFTER_S - 60, True),
        (lambda: None, True),
        (lambda: "soon", True),
    ],
)
def test_status_and_compare_agree_on_a_training_without_a_heartbeat(
    run: RunDir, heartbeat: Callable[[], object], is_silent: bool
) -> None:
    status = {"state": "running", "epoch": 2, "heartbeat": heartbeat()}
    files.write_json(run.status_path, status)
    files.write_json(run.attempt_path(1), {"host": "elsewhere"})
    run.checkpoint_path(9999).unlink()
    run.evaluation_path(9999).unlink()
    (row,) = run_statuses(run.path.parent)
    assert row.state == ("lost" if is_silent else "running")
    told = any("but silent for 4 minutes" in problem for problem in read(run.path).problems)
    assert told == (is_silent and silence_s(status) < math.inf)
