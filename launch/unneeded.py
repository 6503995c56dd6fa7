"""What under a runs folder no result, no job and no resumption needs.

A run that trains now or waits in Slurm is left alone; where jobs were submitted and Slurm does not
answer, everything is.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffuse.errors import DiffuseError, EnvironmentFailed
from diffuse.rundir import RunDir
from launch.ledger import submissions
from launch.there import live_jobs

ATTEMPT = re.compile(r"(?P<job>.+-\d+(?:_\d+)?)-r(?P<number>\d+)")


@dataclass(frozen=True)
class Item:
    """A file or a folder that can go."""

    kind: str
    path: Path
    why: str
    size: int  # bytes


def unneeded(runs_dir: Path) -> list[Item]:
    """Everything that can go, in order of kind and path."""
    busy = _busy(runs_dir)
    runs = [RunDir(path.parent) for path in sorted(runs_dir.glob("*/config.yaml"))]
    idle = [
        run
        for run in runs
        if busy is not None and run.name not in busy and run.status().get("state") != "running"
    ]
    found = list(_code(runs_dir, busy))
    for run in idle:
        found += _checkpoints(run)
    for run in idle:
        found += _logs(run)
    return found


def remove(item: Item) -> None:
    """Remove it; EnvironmentFailed where that is not allowed."""
    try:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFailed(f"{item.path}: cannot be removed: {error.strerror}") from None


def _busy(runs_dir: Path) -> set[str] | None:
    """Runs with a job that waits or runs; None where there may be some and Slurm is silent."""
    if not any(submission.jobs for submission in submissions(runs_dir)):
        return set()
    try:
        return set(live_jobs(runs_dir))
    except EnvironmentFailed:
        return None


def _code(runs_dir: Path, busy: set[str] | None) -> Iterator[Item]:
    """Snapshots that no waiting or running job was submitted with, nor any run not yet done."""
    if busy is None:
        return
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


def _checkpoints(run: RunDir) -> Iterator[Item]:
    """Checkpoints between those asked for; of an unfinished run the two newest stay.

    The newest is what it goes on from, and the one before where that is damaged.
    """
    try:
        asked = set(run.config().evaluated_epochs)
    except DiffuseError:
        return
    kept_all = run.config().checkpoint.keep == "all"
    there = sorted(run.checkpoints.glob("[!.]*.pt"), key=lambda path: path.stat().st_mtime)
    evaluated = {path.stem for path in run.evaluations.glob("epoch_*.json")}
    keep = 1 if run.status().get("state") == "done" else 2
    for path in there[:-keep]:
        number = int(path.stem.partition("_")[2] or 0)
        is_result = path.stem.startswith("epoch_") and (kept_all or number in asked)
        if not is_result and path.stem not in evaluated:
            yield Item("intermediate checkpoints", path, "a newer one is there", _size(path))
    for path in sorted(run.checkpoints.glob(".*.tmp")):
        yield Item("intermediate checkpoints", path, "never finished", _size(path))


def _logs(run: RunDir) -> Iterator[Item]:
    """What attempts of a job logged that a later attempt of the same job took over."""
    latest: dict[str, int] = {}
    matches = []
    for path in sorted(run.logs.glob("*")):
        if match := ATTEMPT.match(path.name):
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
