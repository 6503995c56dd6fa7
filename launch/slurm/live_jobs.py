"""The pending and running Slurm jobs of each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffuse.rundir.directory import RunDir
from launch.grids.ledger import submissions
from launch.jobs.logs import cancellation
from launch.slurm import commands
from launch.slurm.commands import Job


def live_jobs(
    runs_dir: Path,
    grid: str = "*",
    queue: Mapping[str, Job] | None = None,
    runs: Iterable[RunDir] = (),
) -> dict[str, list[Job]]:
    """The jobs of each run that wait or run in Slurm, of those that sweeps here submitted.

    Args:
        runs: of which the jobs that others submitted (sbatch slurm/*.sh) count, too, once they
            have begun.
    """
    queue = commands.queue() if queue is None else queue
    found: dict[str, list[Job]] = {}
    for submission in submissions(runs_dir, grid):
        commands.fill_in_ids(submission.jobs, queue)
        for record in submission.jobs:
            job = queue.get(record["job_id"])
            if job is not None and job.is_live and not _is_cancelled(record, runs_dir):
                found.setdefault(record["run"] or "report", []).append(job)
    for run in runs:
        job = own_job(run.status(), run.attempt(run.attempt_number()), queue)
        if job is None or cancellation(run, job.id).exists():
            continue
        if job not in found.get(run.name, []):
            found.setdefault(run.name, []).append(job)
    return found


def _is_cancelled(record: Mapping[str, Any], runs_dir: Path) -> bool:
    """Whether the job, of several runs, goes on without the record's."""
    return (
        "pack" in record
        and cancellation(RunDir(runs_dir / record["run"]), record["job_id"]).exists()
    )


def own_job(
    status: Mapping[str, Any], attempt: Mapping[str, Any], queue: Mapping[str, Job]
) -> Job | None:
    """The job in which a run is trained, or will resume, from any submission.

    Args:
        status: of the run.
        attempt: the record of its newest attempt.
    """
    job = queue.get(job_id(attempt))
    if job is None or not job.is_live:
        return None
    # A user's own allocation outlives the trainings in it.
    return job if status.get("state") == "running" or job.state != "RUNNING" else None


def job_id(attempt: Mapping[str, Any]) -> str:
    """The job of an attempt's record as Slurm lists it: 12, 12_3; "" of one outside Slurm."""
    if attempt.get("array_job_id"):
        return f"{attempt['array_job_id']}_{attempt['array_task_id']}"
    return str(attempt.get("job_id") or "")
