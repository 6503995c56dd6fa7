"""The one file that runs Slurm's commands: the limits of the site, the states of jobs.

Every question is one call for all jobs together. executor.py hands jobs in.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffuse.runtime.errors import EnvironmentFailed, UserError
from launch.grids.cluster import Cluster

TIMEOUT_S = 60
NO_ANSWER = f"no answer for {TIMEOUT_S} s; is Slurm's controller up?"
# The states that a job leaves only by being submitted again. Slurm has many others.
FINAL = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}

# The line of sbatch with a job's id: with --parsable or without, perhaps with the cluster's name.
SUBMITTED = re.compile(r"(?:Submitted batch job )?(\d+)(?:;.*| on cluster .*)?")

# Variables that Slurm sets inside a job; a job submitted from there must not inherit them.
JOB_VARIABLES = re.compile(
    r"S(LURM|BATCH|RUN)_(?!(CONF|CONF_SERVER|CLUSTERS|JWT)$).*"
    r"|SUBMITIT_.*|MASTER_(ADDR|PORT)|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|TORCHELASTIC_.*"
    r"|DIFFUSE_INTERRUPTED"
)
JOB_NAMES = {"SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"}


@dataclass(frozen=True)
class Job:
    """Slurm's record of one job, an array's task counting as one."""

    id: str  # 12, or 12_3
    state: str  # PENDING, RUNNING, TIMEOUT, ...
    reason: str = ""  # why it waits
    node: str = ""
    name: str = ""
    folder: str = ""  # that it was submitted to start in

    @property
    def is_live(self) -> bool:
        return self.state not in FINAL

    @property
    def task(self) -> int:
        """Its place in its array; 0 of a job that is none."""
        return int(self.id.partition("_")[2] or 0)

    def __str__(self) -> str:
        if self.state == "PENDING":
            return f"queued as {self.id} ({self.reason})"
        return f"{self.state.lower()} as {self.id}" + (f" on {self.node}" if self.node else "")


@dataclass(frozen=True)
class Partition:
    name: str
    is_default: bool
    max_minutes: float  # infinite where the site sets no limit


@dataclass(frozen=True)
class Site:
    """The partitions and limits of this cluster."""

    partitions: tuple[Partition, ...]
    max_array_size: int
    max_jobs: int = 10_000  # that Slurm keeps, of all users, each task of an array counting

    def check(self, settings: Cluster, source: str) -> None:
        """Refuse, before anything is submitted, a longer time limit than its partition allows.

        A partition that is not listed may be hidden or another cluster's: sbatch knows.
        """
        names = [name.strip() for name in (settings.partition or "").split(",")]
        for partition in self.partitions:
            chosen = partition.name in names if settings.partition else partition.is_default
            if chosen and settings.time is not None and settings.time > partition.max_minutes:
                raise UserError(
                    f"{source}: time: {settings.time} minutes is more than partition"
                    f" {partition.name} allows ({partition.max_minutes:.0f})"
                )


def site() -> Site:
    """Ask the controller for partitions and limits."""
    listed = ask("scontrol", "show", "partition", "--all", "--oneliner")  # hidden ones, too
    found = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in listed.splitlines()]
    partitions = tuple(
        Partition(facts["PartitionName"], facts.get("Default") == "YES", _minutes(facts["MaxTime"]))
        for facts in found
        if "PartitionName" in facts
    )
    config = ask("scontrol", "show", "config")
    limits = {name: int(n) for name, n in re.findall(r"^(\w+)\s*=\s*(\d+)", config, re.MULTILINE)}
    return Site(partitions, limits.get("MaxArraySize") or 1001, limits.get("MaxJobCount") or 10_000)


def queue() -> dict[str, Job]:
    """This user's jobs that wait or run, by id; one squeue call."""
    user = f"--user={os.getuid()}"  # a user may have no name here
    fields = ("%i", "%T", "%r", "%N", "%j", "%Z")
    text = ask("squeue", "--noheader", "--array", user, f"--format={'|'.join(fields)}")
    jobs = (Job(*line.split("|", 5)) for line in text.splitlines() if line.count("|") >= 5)
    return {job.id: job for job in jobs}


def fill_in_ids(records: Iterable[dict[str, Any]], queue: Mapping[str, Job]) -> None:
    """Fill in the `job_id` of a ledger's records whose launcher did not live to hear it."""
    by_place = {(job.folder, job.task): job.id for job in queue.values()}
    for record in records:
        if not record["job_id"]:
            record["job_id"] = by_place.get((record.get("folder", ""), record.get("task", 0)), "")


def job_count() -> int:
    """The number of jobs of all users that Slurm keeps, including those that ended recently."""
    return ask("squeue", "--noheader", "--array", "--states=all", "--format=%i").count("\n")


def accounting(ids: Iterable[str]) -> dict[str, Job]:
    """The jobs that accounting remembers, by id; {} on a site without it. One sacct call.

    Args:
        ids: of jobs or whole arrays; the answer has an array's tasks one by one.
    """
    wanted = sorted({job_id.partition("_")[0] for job_id in ids})
    if not wanted:
        return {}
    try:
        text = ask(
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            f"--jobs={','.join(wanted)}",
            "--format=JobID,State,NodeList,JobName",
        )
    except EnvironmentFailed:
        return {}
    jobs = {}
    for line in text.splitlines():
        job_id, state, node, name = (line.split("|", 3) + [""] * 4)[:4]
        node = "" if node == "None assigned" else node
        jobs[job_id] = Job(job_id, state.split()[0] if state else "", "", node, name)
    return jobs


def end_reason(job: Job | None) -> str:
    """Why a job ended, by accounting; "" where that is not known, or the job ended well."""
    if job is None or job.state in ("COMPLETED", "RUNNING", "PENDING", ""):
        return ""
    return f"{job.state} (cluster: memory_gb)" if job.state == "OUT_OF_MEMORY" else job.state


def submit(*command: str) -> str:
    """Hand in a job by an sbatch command; the job's id, whatever else a site's sbatch prints.

    Raises EnvironmentFailed with Slurm's own words where it refuses.
    """
    try:
        done = _run(command)
    except subprocess.TimeoutExpired:
        raise EnvironmentFailed(f"sbatch refused: {NO_ANSWER}") from None
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines()]
    if done.returncode:
        errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
        reason = "; ".join(errors) or ([line for line in lines if line] or ["no message"])[-1]
        raise EnvironmentFailed(f"sbatch refused: {reason.removeprefix('sbatch: ')}")
    ids = [found.group(1) for found in map(SUBMITTED.fullmatch, lines) if found]
    if not ids:
        raise EnvironmentFailed(f"sbatch printed no job's id, but: {done.stdout.strip()!r}")
    return ids[-1]


def cancel(ids: Sequence[str]) -> None:
    """End these jobs."""
    for start in range(0, len(ids), 500):
        ask("scancel", *ids[start : start + 500])


@contextlib.contextmanager
def outside_any_job(settings: Cluster | None = None) -> Iterator[None]:
    """An environment for sbatch without the variables of an enclosing job (salloc, srun).

    SBATCH_* go, too, since they win over a batch script's options; but SBATCH_ACCOUNT, which many
    a site has its users set, stays where the cluster file names no account. Without settings, for
    a program started on this machine: it ends with the enclosing job, whose name stays therefore,
    but is no task of its step.
    """
    kept = JOB_NAMES
    if settings is not None:
        kept = set() if settings.account else {"SBATCH_ACCOUNT"}
    names = [name for name in os.environ if JOB_VARIABLES.fullmatch(name) and name not in kept]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def ask(*command: str) -> str:
    """The output of a Slurm command; EnvironmentFailed where it fails or hangs."""
    try:
        done = _run(command)
    except subprocess.TimeoutExpired:
        raise EnvironmentFailed(f"{command[0]}: {NO_ANSWER}") from None
    if done.returncode:
        answer = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise EnvironmentFailed(
            f"Slurm does not answer ({answer}); without a cluster use --cluster local"
        )
    return done.stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command. Names of jobs and people may be in any encoding."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError:
        raise EnvironmentFailed(
            f"{command[0]} is not here; on a machine without Slurm use --cluster local"
        ) from None


def _minutes(text: str) -> float:
    """Slurm's [days-]hours:minutes:seconds in minutes."""
    if text in ("UNLIMITED", "INFINITE", "NONE"):
        return float("inf")
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60
