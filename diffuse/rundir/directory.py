"""The run directory: the only interface between programs. Free of torch, so that launchers read it.

    runs/<run name>/
      config.yaml      the resolved config        manifest.json  versions, host, git commit, ...
      metrics.jsonl    one event a line           status.json    state, epoch, step, heartbeat
      attempts/0001.json ...  checkpoints/  samples/  evaluations/  plots/  logs/

The files of an epoch or a step bear its number, and only here are such names known. Files of other
names are a person's own: no program reads, counts or removes them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import socket
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from diffuse.config.presets import read_config
from diffuse.config.schema import Config
from diffuse.runtime import files
from diffuse.runtime.errors import UserError

_SEAL = "# written by diffuse.train, checksum"
SILENT_AFTER_S = 180.0  # a training that lives writes its heartbeat more often than this


@dataclass(frozen=True)
class CheckpointFile:
    """`epoch_0020.pt`, at the end of an epoch, or `step_00000123.pt`, at a step within one."""

    path: Path
    epoch: int | None = None
    step: int | None = None

    def at(self, steps_per_epoch: int) -> int:
        """The step after which it was written."""
        return self.step if self.step is not None else (self.epoch or 0) * steps_per_epoch


def _below(name: str) -> functools.cached_property[Path]:
    """The path of a run directory's file or folder, an attribute of RunDir."""
    return functools.cached_property(lambda run: run.path / name)


@dataclass(frozen=True)
class RunDir:
    """The paths of one run directory, and readers of its files."""

    path: Path

    config_path = _below("config.yaml")
    manifest_path = _below("manifest.json")
    metrics_path = _below("metrics.jsonl")
    status_path = _below("status.json")
    attempts = _below("attempts")
    checkpoints = _below("checkpoints")
    samples = _below("samples")
    plots = _below("plots")
    evaluations = _below("evaluations")
    logs = _below("logs")

    @property
    def name(self) -> str:
        return self.path.name

    def checkpoint_path(self, epoch: int) -> Path:
        """The checkpoint at the end of `epoch` (1-based)."""
        return self.checkpoints / f"epoch_{epoch:04d}.pt"

    def step_checkpoint_path(self, step: int) -> Path:
        """The checkpoint after `step` (1-based), within an epoch."""
        return self.checkpoints / f"step_{step:08d}.pt"

    def evaluation_path(self, epoch: int) -> Path:
        """The results of the checkpoint of `epoch`."""
        return self.evaluations / f"epoch_{epoch:04d}.json"

    def samples_path(self, epoch: int) -> Path:
        """The images that training draws at the end of `epoch`."""
        return self.samples / f"epoch_{epoch:04d}.h5"

    def picture_path(self, epoch: int) -> Path:
        """The same images as a picture."""
        return self.samples / f"epoch_{epoch:04d}.png"

    def evaluated_samples_path(self, epoch: int, sampler: str, seed: int) -> Path:
        """The images by which the checkpoint of `epoch` is evaluated."""
        return self.samples / f"epoch_{epoch:04d}_{sampler}_seed_{seed}.h5"

    def checkpoint_files(self) -> list[CheckpointFile]:
        """All checkpoints: those of epochs in order, then those of steps in order."""
        steps = _numbered(self.checkpoints, "step_", 8, ".pt")
        return [
            *(CheckpointFile(self.checkpoint_path(n), epoch=n) for n in self.trained_epochs()),
            *(CheckpointFile(self.step_checkpoint_path(n), step=n) for n in steps),
        ]

    def trained_epochs(self) -> list[int]:
        """The epochs whose checkpoint is kept, in order."""
        return _numbered(self.checkpoints, "epoch_", 4, ".pt")

    def evaluated_epochs(self) -> list[int]:
        """The epochs that have results, in order."""
        return _numbered(self.evaluations, "epoch_", 4, ".json")

    def sampled_epochs(self) -> list[int]:
        """The epochs at whose end images were drawn, in order."""
        return _numbered(self.samples, "epoch_", 4, ".h5")

    def pictured_epochs(self) -> list[int]:
        """The epochs that have a picture of such images, in order."""
        return _numbered(self.samples, "epoch_", 4, ".png")

    def has_epoch(self, epoch: int) -> bool:
        """Whether the checkpoint at the end of `epoch` is there (it is not opened)."""
        return self.checkpoint_path(epoch).is_file()

    def has_samples(self, epoch: int) -> bool:
        """True where the images of the end of `epoch` exist, as a picture and as data."""
        return self.picture_path(epoch).is_file() and self.samples_path(epoch).is_file()

    def config(self) -> Config:
        """The config this directory belongs to; UserError where it is missing or damaged."""
        try:
            first, _, text = self.config_path.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            first = text = ""  # read_config explains the error
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

    def wandb_address(self) -> str:
        """The address of its W&B run; "" of one that W&B's server has not seen."""
        return str(files.read_json(self.path / "wandb" / "online.json").get("url") or "")

    def lines(self, event: str = "") -> Iterator[dict[str, Any]]:
        """The events as they were written, all those of replayed steps.

        Lines that are not whole JSON objects (torn by a death) are skipped.

        Args:
            event: of this kind alone; lines of others are not parsed.
        """
        wanted = event.encode()
        with contextlib.suppress(FileNotFoundError), self.metrics_path.open("rb") as file:
            for raw in file:
                line = files.unsealed(raw) if wanted in raw else None
                if line is not None and "event" in line and event in ("", line["event"]):
                    yield line

    def metrics(self, event: str | None = None) -> list[dict[str, Any]]:
        """The events that count, in order of step."""
        return [e for e in counting(self.lines()) if event is None or e.get("event") == event]

    def attempt_number(self) -> int:
        """The highest attempt claimed so far; 0 where none was."""
        return max(_numbered(self.attempts, "", 4, ".json"), default=0)

    def attempt_path(self, number: int) -> Path:
        """The record of attempt `number` (1-based)."""
        return self.attempts / f"{number:04d}.json"

    def attempt(self, number: int) -> dict[str, Any]:
        """The record of attempt `number`: host, pid, start time, job; {} where there is none."""
        return files.read_json(self.attempt_path(number))

    def running_process(self) -> int | None:
        """The process on this machine that trains this run now, other than the caller's own.

        An attempt started again by Slurm (a node was lost, say) does not count as another: the old
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


def counting(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of `RunDir.lines` in order of step; of a replayed step the last attempt's."""
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        key = (str(line.get("event")), int(line.get("step", 0)))
        known = latest.get(key)
        if known is None or line.get("attempt", 0) >= known.get("attempt", 0):
            latest[key] = line
    return sorted(latest.values(), key=lambda e: int(e.get("step", 0)))


def silence_s(status: Mapping[str, Any]) -> float:
    """Seconds since the heartbeat in a status; infinite where it has none."""
    heartbeat = status.get("heartbeat")
    return time.time() - heartbeat if isinstance(heartbeat, int | float) else math.inf


def _numbered(folder: Path, prefix: str, digits: int, suffix: str) -> list[int]:
    """The numbers of the files in `folder` that bear one, as we write it, in order."""
    name = re.compile(rf"{prefix}([0-9]{{{digits}}}|[1-9][0-9]{{{digits},}}){re.escape(suffix)}")
    try:
        with os.scandir(folder) as entries:
            found = [(name.fullmatch(entry.name), entry) for entry in entries]
            return sorted(int(match[1]) for match, entry in found if match and entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _seal(text: str) -> str:
    return f"{_SEAL} {zlib.crc32(text.encode()):08x}"
