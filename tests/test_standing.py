"""How runs stand, from their directories alone: no Slurm is asked here."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffuse import files
from diffuse.rundir import Attempt, RunDir
from launch.standing import standings
from tests.programs import ROOT, environment


def a_run(folder: Path, state: str, name: str = "run", **facts: Any) -> Path:
    """A run directory that says `state`."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.yaml").touch()
    (path / "attempts").mkdir()
    (path / "attempts" / "0001.json").write_text('{"host": "elsewhere", "node": "node7"}')
    status = {"state": state, "epoch": 2, "epochs": 4, "heartbeat": time.time(), **facts}
    (path / "status.json").write_text(json.dumps(status))
    return path


def ended(run: Path, program: str, code: int, said: str) -> None:
    """The record and the log of an attempt at `program`."""
    files.write_json(run / "logs" / f"{program}-7-r00.json", {"code": code})
    (run / "logs" / f"{program}-7-r00.log").write_text(f"$ python\n{said}\n")


@pytest.mark.parametrize(
    ("state", "facts", "record", "expected", "reason"),
    [
        ("done", {}, None, "done", ""),
        ("failed", {"reason": "the loss became nan"}, None, "failed", "the loss became nan"),
        ("interrupted", {"reason": "SIGUSR2"}, None, "interrupted", "the next sweep goes on"),
        ("interrupted", {}, ("train", 75, "saved"), "interrupted", "the next sweep goes on"),
        ("interrupted", {}, ("train", 1, "error: 3 requeues"), "failed", "3 requeues"),
        ("done", {}, ("evaluate", 0, "fine"), "done", ""),
        ("done", {}, ("evaluate", 2, "error: no weights"), "failed", "evaluation: no weights"),
        ("running", {}, None, "running", ""),
        ("running", {"heartbeat": 0}, None, "lost", "its job is gone; the next sweep goes on"),
    ],
)
def test_a_run_stands_as_its_directory_says(
    tmp_path: Path,
    state: str,
    facts: dict[str, Any],
    record: tuple[str, int, str] | None,
    expected: str,
    reason: str,
) -> None:
    run = a_run(tmp_path, state, **facts)
    if record is not None:
        ended(run, *record)
    (row,) = standings(tmp_path)
    assert row.state == expected
    assert reason in row.reason
    assert (row.attempts, row.node) == (1, "node7")


def test_a_log_is_rank_0s_where_there_are_several(tmp_path: Path) -> None:
    run = a_run(tmp_path, "failed")
    ended(run, "train", 1, "error: what happened")
    time.sleep(0.01)
    (run / "logs" / "train-7-r00-rank3.log").write_text("error: lost the others\n")
    status = [sys.executable, ROOT / "launch" / "status.py", f"--runs-dir={tmp_path}"]
    done = subprocess.run([*status, "--log=run"], capture_output=True, text=True, env=environment())
    assert "what happened" in done.stdout


def test_5000_runs_are_looked_at_within_five_seconds(tmp_path: Path) -> None:
    for k in range(5000):
        a_run(tmp_path, "failed" if k == 4321 else "done", f"run-{k:04d}")
    status = [sys.executable, ROOT / "launch" / "status.py", f"--runs-dir={tmp_path}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(status, capture_output=True, text=True, env=environment(), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The processor's time: this machine may have others to serve.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert "run-4321" in done.stdout, "what went wrong comes first"
    assert "and 4500 more" in done.stdout
    assert "4999 done, 1 failed" in done.stdout


def test_attempts_are_counted_beyond_four_digits(tmp_path: Path) -> None:
    run = RunDir(a_run(tmp_path, "interrupted"))
    for name in ("9999.json", "10000.json", ".10001.json.host-1.tmp", "notes.json"):
        (run.path / "attempts" / name).write_text("{}")
    assert run.attempt_number() == 10_000
    assert Attempt.claim(run).number == 10_001
    assert run.attempt_number() == 10_001
