"""Why an attempt or a job ended, by its record, its log or its output."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from launch.jobs.program import INTERRUPTED

# Interrupted, or killed by a signal that asks to end.
RESUMABLE = (INTERRUPTED, 130, -2, -10, -12, -15)
# The usual cause of an end by a signal. NCCL aborts a program whose collective lasts too long.
CAUSES = {
    "SIGKILL": "out of memory?",
    "SIGABRT": "another rank hung? see the logs of all ranks",
}
OTHERS = ("srun: ", "slurmstepd", "submitit ")  # they tell that a program ended, not why


def final_error(run: RunDir, program: str) -> str:
    """The error with which the newest attempt of `program` ended for good; "" where none did."""
    newest: tuple[str, int] = ("", 0)
    code, log = None, run.logs
    for path in filter(Path.is_file, run.logs.glob(f"{program}-*.json")):
        record = files.read_json(path)
        # By its start: one that was superseded ends after its successor began.
        began = (str(record.get("started", "")), path.stat().st_mtime_ns)
        if began > newest:
            newest, code, log = began, record.get("code"), path.with_suffix(".log")
    if code in (None, 0, *RESUMABLE):
        return ""
    return end_by_signal(code) if code < 0 else last_error(log)


def newest_record(run: RunDir, program: str, job: str) -> dict[str, Any]:
    """The record of the latest start of `program` in that job; {} where it has not begun there."""
    stem = f"{program}-{job}-r"
    starts = [path.stem.removeprefix(stem) for path in run.logs.glob(f"{stem}*.json")]
    newest = max((start for start in starts if start.isdecimal()), key=int, default=None)
    return {} if newest is None else files.read_json(run.logs / f"{stem}{newest}.json")


def final_code(record: Mapping[str, Any]) -> int | None:
    """The exit code of a program that does not start again when its job is requeued, else None."""
    code = record.get("code")
    return None if code in (None, INTERRUPTED) else int(code)


def cancellation(run: RunDir, job: str) -> Path:
    """The file that takes one run out of a job of several, which goes on with the others."""
    return run.logs / f"{job}.cancelled"


def end_by_signal(code: int) -> str:
    """The end by a signal, whose number is -`code`."""
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-code}"
    return f"killed by {name}" + (f" ({CAUSES[name]})" if name in CAUSES else "")


def startup_output(run: RunDir, record: Mapping[str, Any]) -> Path | None:
    """The output of a job that began, but ended before its program could; None of other jobs.

    Args:
        record: the ledger's, of a job that neither waits nor runs.
    """
    if any(run.logs.glob(f"{record['program']}-{record['job_id']}-r*")):
        return None
    # submitit's name for it
    output = Path(record.get("folder", "")) / f"{record['job_id']}_0_log.out"
    if not output.is_file():
        return None
    log = newest_log(run)  # a newer log is the one to read
    return None if log and log.stat().st_mtime > output.stat().st_mtime else output


def newest_log(run: RunDir) -> Path | None:
    """The log of the latest attempt at anything."""
    logs = [path for path in run.logs.glob("*.log") if path.is_file()]  # no dangling links
    logs = [path for path in logs if "-rank" not in path.name] or logs  # rank 0 knows most
    return max(logs, key=lambda path: path.stat().st_mtime_ns, default=None)


def last_error(log: Path) -> str:
    """The last line of a log that says `error:`, else its last line."""
    with contextlib.suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            lines = file.read().decode(errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        for line in reversed(lines):
            if line.startswith("error: "):
                return line.removeprefix("error: ")
        if lines:
            return ([line for line in lines if not line.startswith(OTHERS)] or lines)[-1]
    return "no output"
