"""The state of every run, by its own directory and by Slurm's answers about its jobs.

Accounting may be missing or late, and Slurm forgets jobs: the run directory is the truth about the
training, the queue is the truth about pending and running jobs, and sacct only explains an end.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffuse.rundir.directory import SILENT_AFTER_S, RunDir, silence_s
from diffuse.runtime.errors import EnvironmentFailed, UserError
from launch.grids.ledger import Ledger, known_configs, noted_axes, submissions
from launch.grids.selection import Where, point
from launch.jobs.logs import (
    cancellation,
    final_code,
    final_error,
    last_error,
    newest_log,
    newest_record,
    startup_output,
)
from launch.slurm import commands
from launch.slurm.commands import Job, end_reason
from launch.slurm.live_jobs import job_id, own_job


@dataclass(frozen=True)
class RunStatus:
    """One run as a row of `launch/status.py`."""

    run: str
    # new, queued, running, evaluating, requeued, done, interrupted, failed, lost, unknown
    state: str
    reason: str
    job: str
    epoch: int | None
    epochs: int | None
    loss: float | None
    images_per_s: float | None
    eta_s: float | None
    evaluated: int
    evaluated_epochs: tuple[int, ...]
    attempts: int
    node: str
    grid: str
    wandb: str  # the address of its W&B run; "" of one that is not online
    settings: str  # on the axes of its grid: `lr=0.0002 order=random`


@dataclass(frozen=True)
class SlurmJobs:
    """Slurm's answers about all jobs, asked once."""

    queue: Mapping[str, Job]
    outage: str  # why it does not answer; "" where it does, or where there is none
    past: Mapping[str, Job]


@dataclass(frozen=True)
class SubmittedJobs:
    """The last jobs that sweeps submitted for a run."""

    grid: str = ""
    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # program: its record

    def id(self, program: str) -> str:
        """The job of `program`; "" where there is none."""
        return str(self.jobs.get(program, {}).get("job_id", ""))

    def own_part(self, run: RunDir, program: str, job: Job | None) -> Job | None:
        """The job as it is for this run: of a pack the run's own part may wait, or have ended."""
        is_packed = job is not None and self.id(program) == job.id and "pack" in self.jobs[program]
        if job is None or not is_packed or not job.is_live:
            return job
        record = newest_record(run, program, job.id)
        if final_code(record) is not None or cancellation(run, job.id).exists():
            return None
        if job.state != "PENDING" and ("code" in record or not record):
            return replace(job, state="PENDING", reason="its job is at other runs")
        return job


def run_statuses(
    runs_dir: Path, grid: str | None = None, where: Where | None = None
) -> list[RunStatus]:
    """All runs under `runs_dir`, or those that sweeps of `grid` submitted or ran; by name.

    One squeue call and one sacct call at most. Raises UserError where no run is of the grid, or has
    the settings of `where`.
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
    queue, outage = _queue() if is_asked else ({}, "")
    submitted: dict[str, SubmittedJobs] = {}
    for submission in found:
        commands.fill_in_ids(submission.jobs, queue)
        for record in submission.jobs:
            if record["run"] and record["job_id"]:
                before = submitted.get(record["run"], SubmittedJobs()).jobs
                jobs = {**before, record["program"]: record}
                submitted[record["run"]] = SubmittedJobs(submission.grid, jobs)
                if grid in (None, submission.grid):
                    names.add(record["run"])
    if grid is not None and not names:
        raise UserError(
            f"{runs_dir}: no sweep of a grid {grid!r} here; leave --grid out to see every run"
        )
    if where is not None:
        subject = str(runs_dir) if grid is None else f"grid {grid}"
        names = set(where.chosen(known_configs(runs_dir, names), subject))
    axes = noted_axes(runs_dir)
    shown = [known for name, known in submitted.items() if name in names]
    ids = {i for known in shown for i in map(known.id, known.jobs)} | set(own.values())
    past = {} if outage else commands.accounting(i for i in ids if i and i not in queue)
    slurm = SlurmJobs(queue, outage, past)
    return [
        _run_status(
            RunDir(runs_dir / name),
            submitted.get(name, SubmittedJobs()),
            numbers.get(name, 0),
            attempts.get(name, {}),
            slurm,
            point(axes.get(name, {})),
        )
        for name in sorted(names)
    ]


def _queue() -> tuple[dict[str, Job], str]:
    """The jobs in the queue, and why Slurm does not answer; ({}, "") without Slurm."""
    if not shutil.which("squeue"):
        return {}, ""
    try:
        return commands.queue(), ""
    except EnvironmentFailed as error:
        return {}, str(error).partition(";")[0]


def _run_status(
    run: RunDir,
    submitted: SubmittedJobs,
    number: int,
    attempt: Mapping[str, Any],
    slurm: SlurmJobs,
    settings: str,
) -> RunStatus:
    status = run.status()
    queued = ((name, slurm.queue.get(submitted.id(name))) for name in submitted.jobs)
    parts = ((name, submitted.own_part(run, name, job)) for name, job in queued)
    active = {name: job for name, job in parts if job is not None and job.is_live}
    own = submitted.own_part(run, "train", own_job(status, attempt, slurm.queue))
    if own is not None:
        active.setdefault("train", own)
    evaluated = set(run.evaluated_epochs())
    state, reason, job = _state(run, status, submitted, job_id(attempt), evaluated, active, slurm)
    return RunStatus(
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
        evaluated_epochs=tuple(sorted(evaluated)),
        attempts=number,
        node=(job.node if job else "") or str(attempt.get("node") or attempt.get("host") or ""),
        grid=submitted.grid,
        wandb=run.wandb_address(),
        settings=settings,
    )


def _state(
    run: RunDir,
    status: Mapping[str, Any],
    submitted: SubmittedJobs,
    own: str,
    evaluated: set[int],
    active: Mapping[str, Job],
    slurm: SlurmJobs,
) -> tuple[str, str, Job | None]:
    """State, reason, and the live job where there is one.

    Args:
        own: the job of the newest attempt, from any submission.
        active: the jobs that wait or run, by program.
    """
    own_state = str(status.get("state", ""))
    if job := active.get("train"):
        if job.state == "PENDING":
            again = "requeued" if own_state in ("interrupted", "running") else "queued"
            return again, job.reason, job
        if job.state == "COMPLETING" and own_state in ("done", "failed", "interrupted"):
            return own_state, str(status.get("reason", "")), job
        return "running", "" if job.state == "RUNNING" else job.state.lower(), job
    if job := active.get("evaluate"):
        if job.state != "PENDING":
            return "evaluating", "", job
        if own_state == "done":
            return "queued", f"evaluation: {job.reason}", job
    beats = silence_s(status) < SILENT_AFTER_S
    if own_state == "running" and (run.running_process() or (slurm.outage and beats)):
        return "running", "", None
    program = "evaluate" if own_state == "done" else "train"
    last = max(submitted.id(program), own if program == "train" else "", key=_number)
    wanted = set(submitted.jobs.get("evaluate", {}).get("epochs", ()))
    unevaluated = wanted - evaluated
    if slurm.outage and last and (unevaluated if own_state == "done" else own_state != "failed"):
        return "unknown", slurm.outage, None
    why = end_reason(slurm.past.get(last))
    is_submitted = last == submitted.id(program) != ""
    early = startup_output(run, submitted.jobs[program]) if is_submitted else None
    error = last_error(early) if early else final_error(run, program)
    if error and why.startswith("OUT_OF_MEMORY"):
        error = why
    elif early and why not in ("", "FAILED"):
        error = ""  # accounting knows better why
    if own_state == "failed":
        return own_state, (error if early else "") or str(status.get("reason", "")), None
    if own_state == "done":
        if error or (why and unevaluated):
            again = "; the next sweep evaluates it" if unevaluated else ""
            return "failed", f"evaluation: {error or why}{again}", None
        return own_state, "", None
    if error:
        return "failed", error, None
    if own_state == "running":
        if not why and beats:
            return own_state, "", None
        why = why or "its job is gone"
        return "lost", f"{why}; the next sweep goes on from its checkpoint", None
    if own_state == "interrupted":
        return own_state, f"{why or status.get('reason', '')}; the next sweep goes on", None
    # It ended before it could say anything.
    if why:
        return "failed", why, None
    if log := newest_log(run):
        return "failed", last_error(log), None
    return "new", "", None


def _number(job: str) -> int:
    return int(job.partition("_")[0] or 0)


def counts(rows: Sequence[RunStatus]) -> str:
    """`12 done, 3 running`."""
    by_state = Counter(row.state for row in rows)
    return ", ".join(f"{n} {state}" for state, n in by_state.most_common())
