"""How runs stand, from their directories alone: or with a stand-in for squeue."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffuse.rundir.attempt import Attempt
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from launch.grids.ledger import Ledger, Submission
from launch.inspection.run_status import run_statuses
from launch.inspection.status_table import GOING_ON
from launch.slurm.commands import Job
from launch.slurm.live_jobs import live_jobs
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
    (row,) = run_statuses(tmp_path)
    assert row.state == expected
    assert reason in row.reason
    assert (row.attempts, row.node) == (1, "node7")


LONG = "my-own-preset-with-a-rather-long-name-for-a-chapter-row-deadbeef"
WHY = "an illegal memory access was encountered; the driver's log tells more, and a tool finds it"


def on_terminal(columns: int, runs: Path) -> list[str]:
    """The lines that `launch/status.py` prints on a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, ROOT / "launch" / "status.py", f"--runs-dir={runs}"]
    process = subprocess.Popen(command, env=environment(TERM="xterm"), stdout=slave, stdin=slave)
    os.close(slave)
    printed = b""
    try:
        while chunk := os.read(master, 4096):
            printed += chunk
    except OSError:  # Linux's end of a terminal
        pass
    assert process.wait(60) == 0
    return re.sub(r"\x1b\[[\d;]*m", "", printed.decode()).replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_on_a_terminal_names_and_reasons_are_whole_and_no_line_is_broken(
    tmp_path: Path, columns: int
) -> None:
    facts = {"epoch": 100, "epochs": 1000, "loss": 0.0213, "images_per_s": 2345.6, "eta_s": 7400}
    for name in ("cold-unet_noiseless-col-0123abcd", LONG):
        a_run(tmp_path, "failed", name, reason=WHY, **facts)
    a_run(tmp_path, "running", "ddpm-unet", **facts)
    lines = on_terminal(columns, tmp_path)
    assert max(map(len, lines)) <= columns
    assert lines[0].split()[:5] == ["run", "state", "epoch", "loss", "ETA"]
    for name in ("cold-unet_noiseless-col-0123abcd", LONG):
        (k,) = [k for k, line in enumerate(lines) if line.split()[:1] == [name]]
        below = " ".join(lines[k : k + 5])
        assert "100/1000" in below and "0.0213" in below
        assert WHY in " ".join(below.split())
    (running,) = [line for line in lines if line.startswith("ddpm-unet ")]
    assert "2h03m" in running
    assert ("node7" in running) == (columns == 120)


def test_in_a_pipe_every_column_stands_and_a_reason_is_one_line(tmp_path: Path) -> None:
    a_run(tmp_path, "failed", LONG, reason=WHY * 5, loss=0.5)
    status = [sys.executable, ROOT / "launch" / "status.py", f"--runs-dir={tmp_path}"]
    done = subprocess.run(status, capture_output=True, text=True, env=environment(), check=True)
    head, row, reason, *_ = done.stdout.splitlines()
    assert head.split() == ["run", "state", "epoch", "loss", "ETA", "node", "attempts"]
    assert row.split() == [LONG, "failed", "2/4", "0.5000", "node7", "1"]
    assert reason == f"  {WHY * 5}"


def test_of_several_logs_rank_0s_is_shown(tmp_path: Path) -> None:
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
    assert "run-4321" in done.stdout, "the failed run comes first"
    assert "and 4500 more" in done.stdout
    assert "4999 done, 1 failed" in done.stdout


def test_attempts_are_counted_beyond_four_digits(tmp_path: Path) -> None:
    run = RunDir(a_run(tmp_path, "interrupted"))
    for name in ("9999.json", "10000.json", ".10001.json.host-1.tmp", "notes.json"):
        (run.path / "attempts" / name).write_text("{}")
    assert run.attempt_number() == 10_000
    assert Attempt.claim(run).number == 10_001
    assert run.attempt_number() == 10_001


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes squeue print these lines, or fail where there is an exit; there is no accounting."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def say(text: str) -> None:
        script = text if text.startswith("exit") else f"cat <<'END'\n{text}\nEND"
        for name, body in (("squeue", script), ("sacct", "exit 1")):
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)

    say("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return say


def submitted(runs: Path, run: str, job: str, program: str = "train", epochs: Any = ()) -> Path:
    """The record of a submission; the folder of its array."""
    ledger = Ledger(runs, "grid")
    folder = ledger.path / f"jobs-{job}" / "01-train"
    record = {"run": run, "program": program, "job_id": job, "epochs": list(epochs)}
    record |= {"folder": str(folder), "task": 0}
    ledger.record(Submission(job, "grid", "slurm", "code", None, [], [record]))
    return folder


def attempted(run: Path, **job: Any) -> None:
    (run / "attempts" / "0001.json").write_text(json.dumps({"host": "elsewhere", **job}))


@pytest.mark.parametrize("state", ["running", "interrupted", "new"])
def test_where_slurm_does_not_answer_nothing_is_lost_and_watching_goes_on(
    tmp_path: Path, squeue: Callable[[str], None], state: str
) -> None:
    runs = tmp_path / "runs"
    if state != "new":
        a_run(runs, state, heartbeat=time.time() - 400)
    submitted(runs, "run", "7_0")
    squeue("exit 1")
    (row,) = run_statuses(runs)
    assert (row.state, row.state in GOING_ON) == ("unknown", True)
    assert "Slurm does not answer" in row.reason
    squeue("7_0|RUNNING||node7|train-grid|/tmp")
    assert [row.state for row in run_statuses(runs)] == ["running"]
    squeue("")
    (row,) = run_statuses(runs)
    assert row.state == {"running": "lost"}.get(state, state)


def test_ended_runs_are_known_without_slurm(tmp_path: Path, squeue: Callable[[str], None]) -> None:
    for state in ("done", "failed"):
        a_run(tmp_path / "runs", state, state)
        submitted(tmp_path / "runs", state, "7_0" if state == "done" else "8_0")
    squeue("exit 1")
    assert [row.state for row in run_statuses(tmp_path / "runs")] == ["done", "failed"]


@pytest.mark.parametrize(
    ("state", "listed", "expected"),
    [
        ("running", "RUNNING", "running"),
        ("interrupted", "PENDING", "requeued"),
        ("interrupted", "RUNNING", "interrupted"),  # a user's own allocation
    ],
)
def test_a_job_that_no_sweep_submitted_is_known_once_it_has_begun(
    tmp_path: Path, squeue: Callable[[str], None], state: str, listed: str, expected: str
) -> None:
    runs = tmp_path / "runs"
    array = {"job_id": "559", "array_job_id": "555", "array_task_id": "3"}
    attempted(a_run(runs, state, "array", heartbeat=0), **array)
    attempted(a_run(runs, state, "single", heartbeat=0), job_id="560")
    ids = ("555_3", "560")
    squeue("\n".join(f"{i}|{listed}|Why|node2|diffuse-ddpm|/home" for i in ids))
    rows = run_statuses(runs)
    assert [row.state for row in rows] == [expected] * 2
    assert [row.job for row in rows] == list(ids)
    directories = [RunDir(runs / name) for name in ("array", "single")]
    live = live_jobs(runs, runs=directories)
    assert [job.id for jobs in live.values() for job in jobs] == (
        [] if expected == "interrupted" else list(ids)
    )


def test_a_job_that_ended_before_its_program_tells_why(
    tmp_path: Path, squeue: Callable[[str], None]
) -> None:
    runs = tmp_path / "runs"
    for job, said in (
        ("7_0", "error: no apptainer on node1; load it in the cluster file's setup"),
        ("7_1", "ModuleNotFoundError: No module named 'diffuse'\nsrun: error: node1: task 0: Exit"),
    ):
        folder = submitted(runs, f"run-{job}", job)
        files.write_text(folder / f"{job}_0_log.out", f"submitit INFO begins\n{said}\n")
    rows = run_statuses(runs)
    assert [row.state for row in rows] == ["failed", "failed"]
    assert "no apptainer on node1" in rows[0].reason
    assert rows[1].reason == "ModuleNotFoundError: No module named 'diffuse'"
    status = [sys.executable, ROOT / "launch" / "status.py", f"--runs-dir={runs}"]
    done = subprocess.run(
        [*status, "--log=run-7_0"], capture_output=True, text=True, env=environment()
    )
    assert "no apptainer on node1" in done.stdout
    # a later training, outside Slurm, say, tells more
    time.sleep(0.01)
    ended(a_run(runs, "failed", "run-7_0", reason="the loss became nan"), "train", 1, "error: nan")
    assert run_statuses(runs)[0].reason == "the loss became nan"


def test_a_program_that_was_killed_is_called_so_and_accounting_knows_of_memory(
    tmp_path: Path, squeue: Callable[[str], None]
) -> None:
    runs = tmp_path / "runs"
    ended(a_run(runs, "running", heartbeat=0), "train", -9, "epoch 3/80 loss 0.1")
    submitted(runs, "run", "7")
    (row,) = run_statuses(runs)
    assert (row.state, row.reason) == ("failed", "killed by SIGKILL (out of memory?)")
    (tmp_path / "bin" / "sacct").write_text("#!/bin/sh\necho '7|OUT_OF_MEMORY|node1|train'\n")
    (row,) = run_statuses(runs)
    assert (row.state, row.reason) == ("failed", "OUT_OF_MEMORY (cluster: memory_gb)")


def test_a_superseded_attempt_that_ends_late_does_not_speak_for_its_successor(
    tmp_path: Path,
) -> None:
    logs = a_run(tmp_path, "interrupted") / "logs"
    files.write_json(logs / "train-8-r00.json", {"started": "2026-01-02T00:00:00", "code": 75})
    files.write_json(logs / "train-7-r00.json", {"started": "2026-01-01T00:00:00", "code": 1})
    assert [row.state for row in run_statuses(tmp_path)] == ["interrupted"]


@pytest.mark.parametrize("state", ["SIGNALING", "STOPPED", "SPECIAL_EXIT", "RESIZING", "PENDING"])
def test_every_state_that_is_not_final_is_live(state: str) -> None:
    assert Job("7", state).is_live
    assert not Job("7", "NODE_FAIL").is_live
