"""How every run stands: its directory's own word, beside what Slurm says of its jobs.

Accounting may be missing or late, and Slurm forgets jobs: what the run directory says is the truth
about the training, the queue is the truth about what waits or runs, and sacct only explains an end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffuse import files
from diffuse.errors import EnvironmentFailed, UserError
from diffuse.rundir import RunDir
from launch import slurm
from launch.ledger import Ledger, submissions
from launch.slurm import Job

LOST_AFTER_S = 180.0  # without a heartbeat, a job or a process
RESUMABLE = (75, 130, -2, -10, -12, -15)  # interrupted, or killed by a signal that asks to end
UNEXPLAINED = {"COMPLETED", "RUNNING", "PENDING", ""}


@dataclass(frozen=True)
class Standing:
    """One run as a row of `launch/status.py`."""

    run: str
    state: str  # queued, running, evaluating, requeued, done, interrupted, failed, lost, new
    reason: str
    job: str
    epoch: int | None
    epochs: int | None
    loss: float | None
    images_per_s: float | None
    eta_s: float | None
    evaluated: int
    attempts: int
    node: str
    grid: str

    def as_plain(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def standings(runs_dir: Path, grid: str | None = None) -> list[Standing]:
    """All runs under `runs_dir`, or those that sweeps of `grid` submitted or ran; by name.

    One squeue call and one sacct call at most.
    """
    jobs: dict[str, dict[str, str]] = {}  # run: program: the last job's id
    asked: dict[str, set[int]] = {}  # run: the epochs that its last evaluation is about
    grids: dict[str, str] = {}
    found = submissions(runs_dir, grid or "*")
    queue = _queue() if any(submission.jobs for submission in found) else None
    for submission in found:
        slurm.identify(submission.jobs, queue or {})
        for record in submission.jobs:
            if record["run"] and record["job_id"]:
                jobs.setdefault(record["run"], {})[record["program"]] = record["job_id"]
                grids[record["run"]] = submission.grid
                if record["program"] == "evaluate":
                    asked[record["run"]] = set(record["epochs"])
    names = set(jobs)
    if grid is None:
        names |= {path.parent.name for path in runs_dir.glob("*/config.yaml")}
    else:
        names |= set(Ledger(runs_dir, grid).runs())
        if not names:
            raise UserError(
                f"{runs_dir}: no sweep of a grid {grid!r} here; leave --grid out to see every run"
            )
    ids = [job_id for programs in jobs.values() for job_id in programs.values()]
    past = {} if queue is None else slurm.accounting(i for i in ids if i not in queue)
    return [
        _standing(
            RunDir(runs_dir / name),
            jobs.get(name, {}),
            asked.get(name, set()),
            grids.get(name, ""),
            queue or {},
            past,
        )
        for name in sorted(names)
    ]


def _queue() -> dict[str, Job] | None:
    """What waits or runs; None where Slurm is out of reach."""
    if not shutil.which("squeue"):
        return None
    try:
        return slurm.queue()
    except EnvironmentFailed:
        return None


def _standing(
    run: RunDir,
    jobs: Mapping[str, str],
    asked: set[int],
    grid: str,
    queue: Mapping[str, Job],
    past: Mapping[str, Job],
) -> Standing:
    status = run.status()
    live = {name: queue[i] for name, i in jobs.items() if i in queue and queue[i].is_live}
    evaluated = {int(path.stem[6:]) for path in run.evaluations.glob("epoch_[0-9]*.json")}
    state, reason, job = _state(run, status, jobs, asked - evaluated, live, past)
    attempts = run.attempt_number()
    record = run.attempt(attempts) if attempts else {}
    return Standing(
        run=run.name,
        state=state,
        reason=reason,
        job=job.id if job else jobs.get("train", ""),
        epoch=status.get("epoch"),
        epochs=status.get("epochs"),
        loss=status.get("loss"),
        images_per_s=status.get("images_per_s") if state == "running" else None,
        eta_s=status.get("eta_s") if state == "running" else None,
        evaluated=len(evaluated),
        attempts=attempts,
        node=(job.node if job else "") or str(record.get("node") or record.get("host") or ""),
        grid=grid,
    )


def _state(
    run: RunDir,
    status: Mapping[str, Any],
    jobs: Mapping[str, str],
    unevaluated: set[int],
    live: Mapping[str, Job],
    past: Mapping[str, Job],
) -> tuple[str, str, Job | None]:
    """State, reason, and the live job where there is one.

    Args:
        unevaluated: epochs that the last evaluation was to do and has not done.
    """
    said = str(status.get("state", ""))
    if job := live.get("train"):
        if job.state == "PENDING":
            again = "requeued" if said in ("interrupted", "running") else "queued"
            return again, job.reason, job
        if job.state == "COMPLETING" and said in ("done", "failed", "interrupted"):
            return said, str(status.get("reason", "")), job
        return "running", "" if job.state == "RUNNING" else job.state.lower(), job
    if job := live.get("evaluate"):
        if job.state != "PENDING":
            return "evaluating", "", job
        if said == "done":
            return "queued", f"evaluation: {job.reason}", job
    why = _explained(past.get(jobs.get("train", "")))
    if said in ("", "running", "interrupted") and (error := _gave_up(run, "train")):
        return "failed", error, None
    if said == "running":
        if run.running_process():
            return "running", "", None
        if not why and time.time() - float(status.get("heartbeat", 0)) < LOST_AFTER_S:
            return "running", "", None
        return (
            "lost",
            f"{why or 'its job is gone'}; the next sweep goes on from its checkpoint",
            None,
        )
    if said == "interrupted":
        return said, f"{why or status.get('reason', '')}; the next sweep goes on", None
    if said == "failed":
        return said, str(status.get("reason", "")), None
    if said == "done":
        why = _explained(past.get(jobs.get("evaluate", "")))
        if error := _gave_up(run, "evaluate") or (why if unevaluated else ""):
            again = "; the next sweep evaluates it" if unevaluated else ""
            return "failed", f"evaluation: {error}{again}", None
        return said, "", None
    if why or _ended_badly(run):
        return "failed", why or _ended_badly(run), None
    return "new", "", None


def _explained(job: Job | None) -> str:
    return job.state if job and job.state not in UNEXPLAINED else ""


def _gave_up(run: RunDir, program: str) -> str:
    """The error with which the newest attempt of `program` ended for good; "" where none did."""
    from launch.local import last_error

    records = run.logs.glob(f"{program}-*.json")
    newest = max(records, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None or files.read_json(newest).get("code") in (None, 0, *RESUMABLE):
        return ""
    return last_error(newest.with_suffix(".log"))


def _ended_badly(run: RunDir) -> str:
    """The last error line of a run that ended before it could say anything."""
    from launch.local import last_error

    log = newest_log(run)
    return last_error(log) if log else ""


def newest_log(run: RunDir) -> Path | None:
    """The log of the latest attempt at anything."""
    logs = list(run.logs.glob("*.log"))
    logs = [path for path in logs if "-rank" not in path.name] or logs  # rank 0 knows most
    return max(logs, key=lambda path: path.stat().st_mtime_ns, default=None)


def counts(rows: Sequence[Standing]) -> str:
    """`12 done, 3 running`."""
    by_state: dict[str, int] = {}
    for row in rows:
        by_state[row.state] = by_state.get(row.state, 0) + 1
    return ", ".join(f"{n} {state}" for state, n in sorted(by_state.items(), key=lambda x: -x[1]))
