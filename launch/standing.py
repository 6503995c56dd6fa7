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

from diffuse.errors import EnvironmentFailed, UserError
from diffuse.rundir import RunDir
from launch import slurm
from launch.ledger import Ledger, submissions
from launch.slurm import Job

LOST_AFTER_S = 180.0  # without a heartbeat, a job or a process
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
    grids: dict[str, str] = {}
    for submission in submissions(runs_dir, grid or "*"):
        for record in submission.jobs:
            if record["run"]:
                jobs.setdefault(record["run"], {})[record["program"]] = record["job_id"]
                grids[record["run"]] = submission.grid
    names = set(jobs)
    if grid is None:
        names |= {path.parent.name for path in runs_dir.glob("*/config.yaml")}
    else:
        names |= set(Ledger(runs_dir, grid).runs())
        if not names:
            raise UserError(
                f"{runs_dir}: no sweep of a grid {grid!r} here; leave --grid out to see every run"
            )
    queue, past = _ask_slurm(jobs)
    return [
        _standing(RunDir(runs_dir / name), jobs.get(name, {}), grids.get(name, ""), queue, past)
        for name in sorted(names)
    ]


def _ask_slurm(jobs: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, Job], dict[str, Job]]:
    """What waits or runs, and what accounting remembers; both empty where Slurm is out of reach."""
    ids = [job_id for programs in jobs.values() for job_id in programs.values()]
    if not ids or not shutil.which("squeue"):
        return {}, {}
    try:
        queue = slurm.queue()
    except EnvironmentFailed:
        return {}, {}
    ended = [job_id for job_id in ids if job_id not in queue]
    return queue, slurm.accounting(ended)


def _standing(
    run: RunDir,
    jobs: Mapping[str, str],
    grid: str,
    queue: Mapping[str, Job],
    past: Mapping[str, Job],
) -> Standing:
    status = run.status()
    live = {name: queue[i] for name, i in jobs.items() if i in queue and queue[i].is_live}
    state, reason, job = _state(run, status, jobs, live, past)
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
        evaluated=sum(1 for _ in run.evaluations.glob("epoch_*.json")),
        attempts=attempts,
        node=(job.node if job else "") or str(record.get("node") or record.get("host") or ""),
        grid=grid,
    )


def _state(
    run: RunDir,
    status: Mapping[str, Any],
    jobs: Mapping[str, str],
    live: Mapping[str, Job],
    past: Mapping[str, Job],
) -> tuple[str, str, Job | None]:
    """State, reason, and the live job where there is one."""
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
    ended = past.get(jobs.get("train", ""))
    why = ended.state if ended and ended.state not in UNEXPLAINED else ""
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
        return said, "", None
    if why or _ended_badly(run):
        return "failed", why or _ended_badly(run), None
    return "new", "", None


def _ended_badly(run: RunDir) -> str:
    """The last error line of a run that ended before it could say anything."""
    from launch.local import last_error

    log = newest_log(run)
    return last_error(log) if log else ""


def newest_log(run: RunDir) -> Path | None:
    """The log of the latest attempt at anything."""
    logs = sorted(run.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else None


def counts(rows: Sequence[Standing]) -> str:
    """`12 done, 3 running`."""
    by_state: dict[str, int] = {}
    for row in rows:
        by_state[row.state] = by_state.get(row.state, 0) + 1
    return ", ".join(f"{n} {state}" for state, n in sorted(by_state.items(), key=lambda x: -x[1]))
