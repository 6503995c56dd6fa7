"""Which state one run is in, from what its directory says of itself and Slurm of its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse.rundir.directory import SILENT_AFTER_S, RunDir, silence_s
from launch.jobs.logs import gave_up, last_error, newest_log, unheard
from launch.slurm.commands import Job, explained


@dataclass(frozen=True)
class SlurmSaid:
    """What Slurm says of all jobs, asked once."""

    queue: Mapping[str, Job]
    silent: str  # why it does not answer; "" where it does, or where there is none
    past: Mapping[str, Job]


@dataclass(frozen=True)
class Submitted:
    """What sweeps submitted last for a run."""

    grid: str = ""
    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # program: its record

    def id(self, program: str) -> str:
        """The job of `program`; "" where there is none."""
        return str(self.jobs.get(program, {}).get("job_id", ""))


def run_state(
    run: RunDir,
    status: Mapping[str, Any],
    submitted: Submitted,
    own: str,
    evaluated: set[int],
    live: Mapping[str, Job],
    slurm: SlurmSaid,
) -> tuple[str, str, Job | None]:
    """State, reason, and the live job where there is one.

    Args:
        own: the job of the newest attempt, whoever submitted it.
        live: the jobs that wait or run, by program.
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
    beats = silence_s(status) < SILENT_AFTER_S
    if said == "running" and (run.running_process() or (slurm.silent and beats)):
        return "running", "", None
    program = "evaluate" if said == "done" else "train"
    last = max(submitted.id(program), own if program == "train" else "", key=_number)
    asked = set(submitted.jobs.get("evaluate", {}).get("epochs", ()))
    unevaluated = asked - evaluated
    if slurm.silent and last and (unevaluated if said == "done" else said != "failed"):
        return "unknown", slurm.silent, None
    why = explained(slurm.past.get(last))
    early = unheard(run, submitted.jobs[program]) if last == submitted.id(program) != "" else None
    error = last_error(early) if early else gave_up(run, program)
    if error and why.startswith("OUT_OF_MEMORY"):
        error = why
    elif early and why not in ("", "FAILED"):
        error = ""  # accounting knows better why
    if said == "failed":
        return said, (error if early else "") or str(status.get("reason", "")), None
    if said == "done":
        if error or (why and unevaluated):
            again = "; the next sweep evaluates it" if unevaluated else ""
            return "failed", f"evaluation: {error or why}{again}", None
        return said, "", None
    if error:
        return "failed", error, None
    if said == "running":
        if not why and beats:
            return said, "", None
        gone = why or "its job is gone"
        return "lost", f"{gone}; the next sweep goes on from its checkpoint", None
    if said == "interrupted":
        return said, f"{why or status.get('reason', '')}; the next sweep goes on", None
    # It ended before it could say anything.
    if why:
        return "failed", why, None
    if log := newest_log(run):
        return "failed", last_error(log), None
    return "new", "", None


def _number(job: str) -> int:
    return int(job.partition("_")[0] or 0)
