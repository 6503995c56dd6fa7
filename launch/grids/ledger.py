"""The launcher's records beside the runs, under RUNS/.launch/: submissions, locks, their holders.

runs/.launch/<grid>/lock, holder.json    one sweep of a grid at a time
runs/.launch/lock, holder.json           one submission at a time: grids share runs
runs/.launch/<grid>/estimate.json        the cost of its runs as estimated before them
runs/.launch/<grid>/jobs-*/              submitit's own files of one sweep, a folder for each array
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from filelock import Timeout

from diffuse.config.presets import resolve
from diffuse.config.schema import Config
from diffuse.config.validation import Layer
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import EnvironmentFailed, UserError

if TYPE_CHECKING:
    from launch.grids.grid import GridRun


@dataclass
class Submission:
    """Jobs handed in by one sweep; `jobs` grows array by array."""

    name: str  # the time, for people, and unique
    grid: str
    cluster: str
    code: str  # the snapshot's hash
    commit: str | None
    command: list[str]
    # run, program, job_id, epochs, folder, task; job_id is "" until Slurm has answered; where runs
    # share a job each has a record with its id, and `pack` is the number of those runs
    jobs: list[dict[str, Any]] = field(default_factory=list)
    code_changed: dict[str, str] = field(default_factory=dict)  # run: the code of its last job


class Ledger:
    """The launcher's folder for one grid under one runs folder."""

    def __init__(self, runs_dir: Path, grid: str) -> None:
        self.runs_dir = runs_dir
        self.grid = grid
        self.path = runs_dir / ".launch" / grid

    @property
    def code_dir(self) -> Path:
        return self.runs_dir / ".launch" / "code"

    def record(self, submission: Submission) -> None:
        """Write down a submission, or additions to it."""
        files.write_json(self.path / "submissions" / f"{submission.name}.json", vars(submission))

    def note_runs(self, runs: Iterable[GridRun]) -> None:
        """Remember the runs of this grid's sweeps, also those of other --set and --seeds."""
        known, settings = self.runs(), self.settings()
        named = {run.name: run for run in runs}
        if new := [name for name in named if name not in known]:
            files.write_json(self.path / "runs.json", {"runs": known + new})
        plain = {
            name: {
                "axes": dict(run.axes),
                "config": run.config.model_dump(mode="json", exclude_defaults=True),
            }
            for name, run in named.items()
        }
        if settings | plain != settings:
            files.write_json(self.path / "settings.json", {"runs": settings | plain})

    def note_costs(self, costs: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember the estimated cost of runs; of a run that is only resumed the first counts."""
        known = self.costs()
        new = {n: c for n, c in costs.items() if known.get(n, {}).get("steps") != c["steps"]}
        if new:
            files.write_json(self.path / "estimate.json", {"runs": known | new})

    def costs(self) -> dict[str, dict[str, Any]]:
        """The cost of each run as it was estimated: steps, seconds, hours, and their unit."""
        return self._of_runs("estimate.json")

    def runs(self) -> list[str]:
        """The runs that sweeps of this grid were about."""
        names = files.read_json(self.path / "runs.json").get("runs")
        return [str(name) for name in names] if isinstance(names, list) else []

    def settings(self) -> dict[str, dict[str, Any]]:
        """Of each run that was noted, its place on the grid's axes and its config."""
        return self._of_runs("settings.json")

    def _of_runs(self, name: str) -> dict[str, dict[str, Any]]:
        """The notes in a file of the ledger by run, damaged ones left out."""
        found = files.read_json(self.path / name).get("runs")
        notes = found.items() if isinstance(found, dict) else ()
        return {run: note for run, note in notes if isinstance(note, dict)}

    def locked(self, wait_s: float = 0) -> contextlib.AbstractContextManager[None]:
        """Hold this grid; EnvironmentFailed, with the holder's name, where another sweep does.

        The lock goes with the process, however that ends.

        Args:
            wait_s: how long the other sweep is waited for.
        """
        return self._held(self.path, self.grid, wait_s)

    @property
    def is_held(self) -> bool:
        """Whether a sweep of this grid seems to be at work, here or on another machine."""
        holder = files.read_json(self.path / "holder.json")
        if not holder or holder.get("host") != socket.gethostname():
            return bool(holder)
        return psutil.pid_exists(int(holder.get("pid", -1)))

    def submitting(self, wait_s: float) -> contextlib.AbstractContextManager[None]:
        """Hold the whole runs folder as `locked` does its grid: the runs of grids overlap."""
        return self._held(self.path.parent, "a grid", wait_s)

    @contextlib.contextmanager
    def _held(self, folder: Path, subject: str, wait_s: float) -> Iterator[None]:
        holder_path = folder / "holder.json"
        lock = contextlib.ExitStack()
        cost = f"two sweeps of {subject} at the same time may do the same work"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(files.locked(folder / "lock", cost, wait_s))
        except Timeout:
            holder = files.read_json(holder_path)
            raise EnvironmentFailed(
                f"{subject} is being swept in {self.runs_dir} by process"
                f" {holder.get('pid', '?')} on {holder.get('host', '?')} since"
                f" {holder.get('since', '?')}; wait for it, or use another --runs-dir"
            ) from None
        except OSError as error:
            raise EnvironmentFailed(
                f"{self.runs_dir}: cannot be written: {error.strerror}; use another --runs-dir"
            ) from None
        try:
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": files.now()}
            files.write_json(holder_path, holder)
            yield
        finally:
            holder_path.unlink(missing_ok=True)
            lock.close()


def noted_axes(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """The place of each run on the axes of its grid, of the runs of all sweeps here."""
    notes = _notes(runs_dir).items()
    return {name: note["axes"] for name, note in notes if isinstance(note.get("axes"), dict)}


def noted_costs(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """The estimated cost of each run, of the runs of all sweeps here."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((runs_dir / ".launch").glob("*/estimate.json")):
        found |= Ledger(runs_dir, path.parent.name).costs()
    return found


def known_configs(runs_dir: Path, names: Iterable[str]) -> dict[str, Config]:
    """The configs of these runs, from their directories or, not begun yet, from their sweeps."""
    noted, found = _notes(runs_dir), {}
    for name in names:
        run = RunDir(runs_dir / name)
        with contextlib.suppress(UserError, KeyError, TypeError):
            is_begun = run.config_path.is_file()
            layer = Layer(f"{runs_dir}/.launch", {} if is_begun else noted[name]["config"])
            found[name] = run.config() if is_begun else resolve([layer])
    return found


def _notes(runs_dir: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((runs_dir / ".launch").glob("*/settings.json")):
        for name, note in Ledger(runs_dir, path.parent.name).settings().items():
            if not found.get(name, {}).get("axes"):  # several grids may share the run
                found[name] = note
    return found


def submissions(runs_dir: Path, grid: str = "*") -> list[Submission]:
    """The submissions under `runs_dir`, oldest first; damaged files are left out."""
    known = {f.name for f in fields(Submission)}
    found = []
    for path in (runs_dir / ".launch").glob(f"{grid}/submissions/*.json"):
        content = files.read_json(path)
        if {"name", "jobs", "grid", "cluster", "code", "commit", "command"} <= content.keys():
            found.append(Submission(**{k: v for k, v in content.items() if k in known}))
    return sorted(found, key=lambda s: s.name)
