"""How every run stands: its directory's own word, beside what Slurm says of its jobs.

Accounting may be missing or late, and Slurm forgets jobs: what the run directory says is the truth
about the training, the queue is the truth about what waits or runs, and sacct only explains an end.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffuse.rundir.directory import RunDir
from diffuse.runtime.errors import EnvironmentFailed, UserError
from launch.inspection.run_state import SlurmSaid, Submitted, run_state
from launch.jobs.ledger import Ledger, submissions
from launch.slurm import commands
from launch.slurm.commands import Job
from launch.slurm.live_jobs import job_id, own_job


@dataclass(frozen=True)
class Standing:
    """One run as a row of `launch/status.py`."""

    run: str
    state: (
        str  # new, queued, running, evaluating, requeued, done, interrupted, failed, lost, unknown
    )
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
    if grid is None:
        names = {path.parent.name for path in runs_dir.glob("*/config.yaml")}
    else:
        names = set(Ledger(runs_dir, grid).runs())
    found = submissions(runs_dir)  # of all grids, which share runs
    numbers = {name: RunDir(runs_dir / name).attempt_number() for name in names}
    attempts = {n: RunDir(runs_dir / n).attempt(number) for n, number in numbers.items() if number}
    own = {name: job_id(attempt) for name, attempt in attempts.items()}
    is_asked = any(own.values()) or any(submission.jobs for submission in found)
    queue, silent = _queue() if is_asked else ({}, "")
    submitted: dict[str, Submitted] = {}
    for submission in found:
        commands.identify(submission.jobs, queue)
        for record in submission.jobs:
            if record["run"] and record["job_id"]:
                before = submitted.get(record["run"], Submitted()).jobs
                jobs = {**before, record["program"]: record}
                submitted[record["run"]] = Submitted(submission.grid, jobs)
                if grid in (None, submission.grid):
                    names.add(record["run"])
    if grid is not None and not names:
        raise UserError(
            f"{runs_dir}: no sweep of a grid {grid!r} here; leave --grid out to see every run"
        )
    shown = [known for name, known in submitted.items() if name in names]
    ids = {i for known in shown for i in map(known.id, known.jobs)} | set(own.values())
    past = {} if silent else commands.accounting(i for i in ids if i and i not in queue)
    said = SlurmSaid(queue, silent, past)
    return [
        _standing(
            RunDir(runs_dir / name),
            submitted.get(name, Submitted()),
            numbers.get(name, 0),
            attempts.get(name, {}),
            said,
        )
        for name in sorted(names)
    ]


def _queue() -> tuple[dict[str, Job], str]:
    """What waits or runs, and why Slurm does not answer; ({}, "") where there is none."""
    if not shutil.which("squeue"):
        return {}, ""
    try:
        return commands.queue(), ""
    except EnvironmentFailed as error:
        return {}, str(error).partition(";")[0]


def _standing(
    run: RunDir, submitted: Submitted, number: int, attempt: Mapping[str, Any], said: SlurmSaid
) -> Standing:
    status = run.status()
    found = ((name, said.queue.get(submitted.id(name))) for name in submitted.jobs)
    live = {name: job for name, job in found if job is not None and job.is_live}
    own = own_job(status, attempt, said.queue)
    if own is not None:
        live.setdefault("train", own)
    evaluated = set(run.evaluated_epochs())
    state, reason, job = run_state(run, status, submitted, job_id(attempt), evaluated, live, said)
    return Standing(
        run=run.name,
        state=state,
        reason=reason,
        job=job.id if job else submitted.id("train") or job_id(attempt),
        epoch=status.get("epoch"),
        epochs=status.get("epochs"),
        loss=status.get("loss"),
        images_per_s=status.get("images_per_s") if state == "running" else None,
        eta_s=status.get("eta_s") if state == "running" else None,
        evaluated=len(evaluated),
        attempts=number,
        node=(job.node if job else "") or str(attempt.get("node") or attempt.get("host") or ""),
        grid=submitted.grid,
    )


def counts(rows: Sequence[Standing]) -> str:
    """`12 done, 3 running`."""
    by_state: dict[str, int] = {}
    for row in rows:
        by_state[row.state] = by_state.get(row.state, 0) + 1
    return ", ".join(f"{n} {state}" for state, n in sorted(by_state.items(), key=lambda x: -x[1]))
