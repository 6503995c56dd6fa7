"""The run directory: the only interface between programs. Free of torch, so that launchers read it.

    runs/<run name>/
      config.yaml      the resolved config        manifest.json  versions, host, git commit, ...
      metrics.jsonl    one event a line           status.json    state, epoch, step, heartbeat
      attempts/0001.json ...  checkpoints/  samples/  evaluations/  plots/  logs/

Attempts are fenced: each start claims the next number by creating its file exclusively; whoever is
no longer the highest publishes nothing more.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from diffuse.config.presets import read_config
from diffuse.config.schema import Config
from diffuse.runtime import files
from diffuse.runtime.errors import DiffuseError, EnvironmentFailed, UserError

_SEAL = "# written by diffuse.train, checksum"
State = Literal["running", "interrupted", "failed", "done"]


class Superseded(DiffuseError):
    """A newer attempt has taken the run over; this one must publish nothing more.

    It ends for good: two jobs of one run that were both requeued would take it from each other.
    """


@dataclass(frozen=True)
class RunDir:
    """Paths of one run directory, and reading of what others wrote there."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def checkpoint_path(self, epoch: int) -> Path:
        """The checkpoint at the end of `epoch` (1-based)."""
        return self.checkpoints / f"epoch_{epoch:04d}.pt"

    def has_epoch(self, epoch: int) -> bool:
        """Whether the checkpoint at the end of `epoch` is there (it is not opened)."""
        return self.checkpoint_path(epoch).is_file()

    def has_samples(self, epoch: int) -> bool:
        """Whether what training draws at the end of `epoch` is there, as picture and as data."""
        stem = self.samples / f"epoch_{epoch:04d}"
        return stem.with_suffix(".png").is_file() and stem.with_suffix(".h5").is_file()

    def config(self) -> Config:
        """The config this directory belongs to; UserError where it is missing or damaged."""
        try:
            first, _, text = self.config_path.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            first = text = ""  # read_config says what is wrong
        if first.startswith(_SEAL) and first != _seal(text):
            raise UserError(
                f"{self.config_path}: damaged or edited; delete it, and the command that made this"
                " run writes it again (other settings are another run)"
            )
        return read_config(self.config_path)

    def write_config(self, config: Config) -> None:
        """Write config.yaml, with a checksum in its first line."""
        text = config.to_yaml()
        files.write_text(self.config_path, f"{_seal(text)}\n{text}")

    def status(self) -> dict[str, Any]:
        """The last published status, {} where there is none or it is damaged."""
        return files.read_json(self.status_path)

    def metrics(self, event: str | None = None) -> list[dict[str, Any]]:
        """The events in order of step; of a replayed step the last attempt's event counts.

        Lines that are not whole JSON objects (torn by a death) are skipped.
        """
        latest: dict[tuple[str, int], dict[str, Any]] = {}
        for line in _lines(self.metrics_path):
            key = (str(line.get("event")), int(line.get("step", 0)))
            known = latest.get(key)
            if known is None or line.get("attempt", 0) >= known.get("attempt", 0):
                latest[key] = line
        events = sorted(latest.values(), key=lambda e: int(e.get("step", 0)))
        return [e for e in events if event is None or e.get("event") == event]

    def attempt_number(self) -> int:
        """The highest attempt claimed so far; 0 where none was."""
        try:
            there = list((self.path / "attempts").iterdir())
        except FileNotFoundError:
            return 0
        numbers = (path.stem for path in there if path.suffix == ".json")
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def attempt(self, number: int) -> dict[str, Any]:
        """What attempt `number` said of itself: host, pid, start time, job."""
        return files.read_json(self.path / "attempts" / f"{number:04d}.json")

    def running_process(self) -> int | None:
        """The process on this machine that trains this run now, other than the caller's own.

        What Slurm started again (after a node was lost, say) does not count as another: the old
        attempt is fenced off, not waited for.
        """
        number = self.attempt_number()
        if not number or self.status().get("state") != "running":
            return None
        record, env = self.attempt(number), os.environ
        here = (socket.gethostname(), env.get("SLURMD_NODENAME"))
        own_job = record.get("job_id") and record["job_id"] == env.get("SLURM_JOB_ID")
        if (record.get("host"), record.get("node")) != here or own_job:
            return None
        try:
            process = psutil.Process(int(record.get("pid", -1)))
            same = abs(process.create_time() - float(record.get("created", 0))) < 2
            alive = same and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError):
            return None
        return process.pid if alive and process.pid != os.getpid() else None


class Attempt:
    """One start of a run: the right to publish into its directory until a newer attempt begins."""

    def __init__(self, run: RunDir, number: int) -> None:
        self.run = run
        self.number = number

    @classmethod
    def claim(cls, run: RunDir) -> Attempt:
        """Take the next attempt number.

        Raises UserError where an attempt on this host is still alive, EnvironmentFailed where the
        folder cannot be written.
        """
        try:
            (run.path / "attempts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFailed(f"{run.path}: cannot be written: {error.strerror}") from None
        current = run.attempt_number()
        if pid := run.running_process():
            raise UserError(
                f"{run.name} is being trained by process {pid} on this machine; stop it first"
            )
        me = psutil.Process()
        record = {
            "host": socket.gethostname(),
            "pid": me.pid,
            "created": me.create_time(),
            "started": now(),
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "array_job_id": os.environ.get("SLURM_ARRAY_JOB_ID"),
            "array_task_id": os.environ.get("SLURM_ARRAY_TASK_ID"),
            "node": os.environ.get("SLURMD_NODENAME"),
        }
        while True:
            current += 1
            path = run.path / "attempts" / f"{current:04d}.json"
            try:
                with path.open("x", encoding="utf-8") as file:
                    json.dump(files.sealed(record), file)
                return cls(run, current)
            except FileExistsError:
                continue

    def remove_leftovers(self) -> None:
        """Remove temporary files of earlier attempts, and of other programs, that were killed."""
        for folder in (self.run.path, self.run.checkpoints):
            files.remove_leftovers(folder, others_write=False)
        for folder in (self.run.samples, self.run.evaluations, self.run.plots, self.run.logs):
            files.remove_leftovers(folder, others_write=True)

    @property
    def is_current(self) -> bool:
        """Whether no newer attempt has begun."""
        return self.run.attempt_number() == self.number

    def check(self) -> None:
        """Raise Superseded where a newer attempt has begun: call before publishing anything."""
        if not self.is_current:
            newer = self.run.attempt_number()
            why = f"attempt {newer} took over" if newer else f"{self.run.path} was removed"
            raise Superseded(
                f"{self.run.name}: {why}; attempt {self.number} stops and publishes nothing more"
            )

    def publish_status(self, state: State, **facts: Any) -> None:
        """Replace status.json."""
        self.check()
        status = {"state": state, "attempt": self.number, "heartbeat": time.time(), **facts}
        files.write_json(self.run.status_path, status)

    def append_metrics(self, events: list[dict[str, Any]]) -> None:
        """Append events to metrics.jsonl, each marked with this attempt."""
        if not events:
            return
        self.check()
        marked = [{"event": e["event"], "attempt": self.number, **e} for e in events]
        files.append_lines(self.run.metrics_path, [json.dumps(files.sealed(e)) for e in marked])


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def default_data_dir() -> Path:
    """Where the data is unless --data-dir says otherwise: $DIFFUSE_DATA, or ./data."""
    return Path(os.environ.get("DIFFUSE_DATA") or "data")


def open_run(runs_dir: Path, config: Config) -> RunDir:
    """The directory of `config` under `runs_dir`; one that holds another config is refused."""
    run = RunDir(runs_dir / config.run_name)
    if run.config_path.exists():
        found = run.config().signature
        if found != config.signature:
            raise UserError(
                f"{run.path} belongs to another config (signature {found}, not"
                f" {config.signature}); rename it or use another --runs-dir"
            )
    return run


def _seal(text: str) -> str:
    return f"{_SEAL} {zlib.crc32(text.encode()):08x}"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for raw in file:
            line = files.unsealed(raw)
            if line is not None and "event" in line:
                yield line
