"""Files under a runs folder that no result, no job and no resumption needs.

A run that trains now or waits in Slurm is left alone; where jobs were submitted and Slurm does not
answer, everything is.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse.rundir.directory import RunDir
from diffuse.runtime.errors import DiffuseError, EnvironmentFailed
from launch.grids import probe
from launch.grids.ledger import Ledger, submissions
from launch.jobs.logs import startup_output
from launch.slurm import commands
from launch.slurm.commands import Job
from launch.slurm.live_jobs import job_id, live_jobs

LOCK_WAIT_S = 120
KINDS = ("old code", "ended jobs' files", "intermediate checkpoints", "dead attempts' logs")
ATTEMPT = re.compile(
    r"(?P<job>(?:train|evaluate)-\d+(?:_\d+)?)-r(?P<number>\d{2,})(?:-rank\d+)?\.(?:log|json|yaml)",
    re.ASCII,
)


@dataclass(frozen=True)
class Item:
    """A file or a folder that can go."""

    kind: str
    path: Path
    why: str
    size: int  # bytes


def removable(runs_dir: Path) -> list[Item]:
    """Everything that can go, in order of kind and path, that of reruns included."""
    found = [item for root in roots(runs_dir) for item in _removable(root)]
    return sorted(found, key=lambda item: KINDS.index(item.kind))


@contextlib.contextmanager
def submissions_held(runs_dir: Path) -> Iterator[None]:
    """Nothing that needs files found removable is submitted inside the block."""
    with contextlib.ExitStack() as stack:
        for root in roots(runs_dir):
            if (root / ".launch").is_dir():
                stack.enter_context(Ledger(root, "*").submitting(LOCK_WAIT_S))
        yield


def roots(runs_dir: Path) -> list[Path]:
    """The runs folder, those of its reruns, and that of its probes."""
    return [runs_dir, *sorted(runs_dir.glob("rerun-*")), probe.folder(runs_dir)]


def _removable(runs_dir: Path) -> Iterator[Item]:
    runs = [RunDir(path.parent) for path in sorted(runs_dir.glob("*/config.yaml"))]
    queue = _queue(runs_dir, runs)
    if queue is None:
        return
    busy = live_jobs(runs_dir, queue=queue, runs=runs)
    yield from _code(runs_dir, busy)
    yield from _job_folders(runs_dir, {Path(j.folder) for j in queue.values() if j.is_live})
    for run in runs:
        if run.name not in busy and run.status().get("state") != "running":
            yield from _checkpoints(run)
            yield from _logs(run)


def remove(item: Item) -> None:
    """Remove it; EnvironmentFailed where that is not allowed."""
    try:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFailed(f"{item.path}: cannot be removed: {error.strerror}") from None


def _queue(runs_dir: Path, runs: Sequence[RunDir]) -> dict[str, Job] | None:
    """The jobs in Slurm's queue; None where there may be some and Slurm does not answer."""
    if not (
        any(submission.jobs for submission in submissions(runs_dir))
        or (runs_dir / ".launch" / "doctor").exists()
        or any(job_id(run.attempt(run.attempt_number())) for run in runs)
    ):
        return {}
    try:
        return commands.queue()
    except EnvironmentFailed:
        return None


def _code(runs_dir: Path, busy: Collection[str]) -> Iterator[Item]:
    """Snapshots that no waiting or running job was submitted with, nor any run not yet done."""
    last: dict[str, str] = {}  # the code of each run's last submission, which a resumption keeps
    for submission in submissions(runs_dir):
        last.update({str(job["run"] or "report"): submission.code for job in submission.jobs})
    needed = {
        code
        for name, code in last.items()
        if name in busy or RunDir(runs_dir / name).status().get("state") not in ("done", None)
    }
    if "report" in busy:
        needed |= set(last.values())
    for path in sorted((runs_dir / ".launch" / "code").glob("*")):
        if path.name not in needed and not path.name.startswith("."):
            yield Item("old code", path, "no job and no unfinished run uses it", _size(path))


def _job_folders(runs_dir: Path, live: set[Path]) -> Iterator[Item]:
    """The folders of jobs that have all ended, unless one may tell why a run is not done.

    Args:
        live: the folders that waiting and running jobs work in.
    """
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for submission in submissions(runs_dir):
        last.update({(job["run"], job["program"]): job for job in submission.jobs if job["run"]})
    for (name, _), record in last.items():
        run = RunDir(runs_dir / name)
        if run.status().get("state") != "done" and startup_output(run, record):
            live.add(Path(record["folder"]))
    for path in sorted((runs_dir / ".launch").glob("*/jobs-*")):
        # A sweep on this machine has its jobs in no queue.
        is_held = Ledger(runs_dir, path.parent.name).is_held
        if not is_held and not any(folder.is_relative_to(path) for folder in live):
            yield Item("ended jobs' files", path, "no job works there", _size(path))
    doctor = runs_dir / ".launch" / "doctor"
    if doctor.exists() and doctor not in live:
        yield Item("ended jobs' files", doctor, "no job works there", _size(doctor))


def _checkpoints(run: RunDir) -> Iterator[Item]:
    """Checkpoints between those asked for; of an unfinished run the two newest stay.

    A run resumes from the newest, or from the one before where that is damaged.
    """
    try:
        wanted = set(run.config().evaluated_epochs)
    except DiffuseError:
        return
    kept_all = run.config().checkpoint.keep == "all"
    results = wanted.union(run.trained_epochs() if kept_all else (), run.evaluated_epochs())
    status = run.status()
    steps = status.get("steps_per_epoch")
    kept = 1 if status.get("state") == "done" else 2
    if isinstance(steps, int):  # else their order is not known, and all stay
        for file in sorted(run.checkpoint_files(), key=lambda file: file.at(steps))[:-kept]:
            if file.epoch not in results:
                why = "a newer one is there"
                yield Item("intermediate checkpoints", file.path, why, _size(file.path))
    for path in sorted(run.checkpoints.glob(".*.tmp")):
        yield Item("intermediate checkpoints", path, "never finished", _size(path))


def _logs(run: RunDir) -> Iterator[Item]:
    """Logs of attempts at a job that a later attempt at the same job took over."""
    latest: dict[str, int] = {}
    matches = []
    for path in sorted(run.logs.glob("*")):
        if match := ATTEMPT.fullmatch(path.name):
            matches.append((path, match["job"], int(match["number"])))
            latest[match["job"]] = max(latest.get(match["job"], 0), int(match["number"]))
    if run.status().get("state") != "done":
        return  # they may tell why
    for path, job, number in matches:
        if number < latest[job]:
            yield Item("dead attempts' logs", path, f"attempt {latest[job]} went on", _size(path))


def _size(path: Path) -> int:
    total = 0
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total
