"""The record of a training: its rows, their writer, and how one end is told from another."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from diffuse.config.presets import load_config, parse_set
from diffuse.config.schema import Config
from diffuse.evaluation import evaluator
from diffuse.rundir.attempt import Attempt, Bystander
from diffuse.rundir.checkpoints import Checkpoints
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Evaluation
from diffuse.runtime.distributed import World
from diffuse.runtime.errors import DiffuseError, Interrupted, Superseded, TrainingFailed
from diffuse.training.log import TrainLog
from diffuse.training.schedule import Schedule

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
SETTINGS = (
    *("tracking.mode=disabled", "train.global_batch=4", "system.log_every=2"),
    "system.log_apart_s=0",
)
CONFIG = load_config("ddpm/default", [parse_set([*SETTINGS])])
SCHEDULE = Schedule.of(CONFIG, images=12, epochs=2)  # three steps each


def log_of(attempt: Attempt, config: Config = CONFIG) -> TrainLog:
    return TrainLog(attempt, config, SCHEDULE, WORLD, timesteps=1000, step=0)


def record(log: TrainLog, step: int, loss: float) -> None:
    losses = torch.full((4,), loss)
    log.record(step, 0.1, losses, torch.tensor([1, 300, 600, 1000]), torch.tensor(2.0))


def test_losses_wait_until_they_are_flushed_and_end_with_their_mean(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    log = log_of(Attempt.claim(run))
    with log.running():
        record(log, 1, 3.0)
        assert not log.is_due and not run.metrics("step")
        record(log, 2, 5.0)
        assert log.is_due
        log.flush()
        assert [e["loss"] for e in run.metrics("step")] == [3.0, 5.0]
        assert run.status()["state"] == "running" and run.status()["step"] == 2
        record(log, 3, 7.0)
        log.end_epoch()
    (epoch,) = run.metrics("epoch")
    assert (epoch["epoch"], epoch["step"], epoch["loss"]) == (1, 3, 5.0)
    assert epoch["loss_by_t_quartile"] == [5.0] * 4
    assert run.status()["state"] == "done" and run.status()["loss"] == 5.0
    assert not (run.path / "wandb").exists()


def test_writes_lie_apart_in_time_and_hold_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr("time.monotonic", lambda: seconds)
    run = RunDir(tmp_path / "run")
    config = load_config("ddpm/default", [parse_set([*SETTINGS[:-1], "system.log_apart_s=1"])])
    log = log_of(Attempt.claim(run), config)
    record(log, 1, 3.0)
    record(log, 2, 5.0)
    assert not log.is_due, "two steps, but no second"
    seconds = 1.0
    assert log.is_due
    log.flush()
    seconds = 2.0
    record(log, 3, 7.0)
    assert not log.is_due, "a second, but one step"
    seconds = 7.0
    assert log.is_due
    log.end_epoch()
    assert [e["loss"] for e in run.metrics("step")] == [3.0, 5.0, 7.0]
    lines = [json.loads(line)["event"] for line in run.metrics_path.read_text().splitlines()]
    assert lines == ["step", "step", "speed", "step", "speed", "epoch"]


def test_an_epoch_is_saved_where_it_is_kept_or_the_last_checkpoint_is_old() -> None:
    def saved(is_old: bool, *settings: str) -> list[int]:
        config = load_config("ddpm/default", [parse_set(["eval.at_epochs=3", *settings])])
        schedule = Schedule.of(config, images=1280, epochs=5)
        return [epoch for epoch in range(1, 6) if schedule.saves_at(epoch, is_old)]

    assert saved(False) == [3]
    assert saved(True) == [1, 2, 3, 4, 5]
    assert saved(True, "checkpoint.every_epochs=2") == [2, 3, 4]
    assert saved(False, "checkpoint.keep=all") == [1, 2, 3, 4, 5]


def test_a_checkpoint_is_old_after_the_time_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr("time.monotonic", lambda: seconds)
    checkpoints = Checkpoints(Bystander(RunDir(tmp_path)), CONFIG, {}, 3, saved_step=0)
    seconds = 59.0
    assert not checkpoints.is_old
    seconds = 60.0
    assert checkpoints.is_old
    checkpoints.save({"step": 3, "model": {}})
    assert not checkpoints.is_old


def test_an_attempt_notes_its_age_at_each_write_and_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 100.0
    monkeypatch.setattr("time.monotonic", lambda: seconds)
    run = RunDir(tmp_path / "run")
    for end, error in (
        (9.0, Interrupted("stopped")),
        (8.0, TrainingFailed("diverged")),
        (7.0, None),
    ):
        log = log_of(Attempt.claim(run))
        began = seconds
        with contextlib.suppress(DiffuseError), log.running():
            seconds = began + 2
            record(log, 1, 3.0)
            log.flush()
            seconds = began + end  # a picture, say
            if error:
                raise error
        lines = [e for e in run.lines() if e["attempt"] == log.attempt.number]
        assert [e["event"] for e in lines] == ["step", "speed", "end"]
        assert [e["seconds"] for e in lines[1:]] == [2.0, end]
        assert "seconds" not in lines[0], "steps are equal bit for bit"


@pytest.mark.parametrize(
    ("error", "state"),
    [(Interrupted("stopped"), "interrupted"), (TrainingFailed("diverged"), "failed")],
)
def test_the_status_tells_how_a_training_ended(
    error: Exception, state: str, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(type(error)), log_of(Attempt.claim(run)).running():
        raise error
    assert run.status()["state"] == state and run.status()["reason"] == str(error)


def test_a_superseded_training_leaves_the_status_to_its_successor(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    log = log_of(Attempt.claim(run))
    with pytest.raises(Superseded), log.running():
        run.attempt_path(2).write_text("{}")
        record(log, 1, 3.0)
        log.flush()
    assert run.status()["state"] == "running"
    assert not run.metrics()


def test_a_bystander_publishes_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    attempt = Bystander(run)
    attempt.remove_leftovers()
    checkpoints = Checkpoints(attempt, CONFIG, {}, SCHEDULE.steps_per_epoch, saved_step=0)
    log = log_of(attempt)
    with log.running():
        for step in (1, 2, 3):
            record(log, step, 1.0)
        log.end_epoch()
        checkpoints.save({"step": 3, "model": {}})
    assert checkpoints.saved_step == 3, "all ranks agree on the saved step"
    assert not run.path.exists()


def test_a_training_that_lost_its_run_publishes_no_evaluation(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    attempt = Attempt.claim(run)
    results = Evaluation(epoch=2, step=6, checkpoint_sha256="0" * 64, weights="model", figures=[])
    evaluator.publish(attempt, CONFIG, results)
    (event,) = run.metrics("evaluation")
    assert (event["epoch"], event["step"], event["attempt"]) == (2, 6, 1)
    run.attempt_path(2).write_text("{}")
    with pytest.raises(Superseded):
        evaluator.publish(attempt, CONFIG, results.model_copy(update={"epoch": 3, "step": 9}))
    assert [e["epoch"] for e in run.metrics("evaluation")] == [2]
    run.metrics_path.write_text(run.metrics_path.read_text().replace('"epoch": 2', '"epoch": 8'))
    assert run.metrics("evaluation") == [], "the event is sealed"
