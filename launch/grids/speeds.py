"""The time of a training step and of an evaluated image, by the runs that there are.

Alike are runs of one network, batch of a rank, precision and kind of step, on as many CPU threads,
or on a GPU that as many runs share.
"""

from __future__ import annotations

import contextlib
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.schema import Config
from diffuse.rundir import evaluations
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Figure
from diffuse.runtime import files
from diffuse.runtime.errors import UserError

MOST_ALIKE = 8  # runs whose speed is read, the newest
STEP_CALLS = 3  # network evaluations that cost as much as a training step: its backward pass is two
# The settings of a step that it takes longer or shorter by, beside the network and the batch.
OF_STEP = {"optimizer", "accumulate", "compile", "deterministic"}


@dataclass(frozen=True)
class Place:
    """The part of a machine on which one run is trained."""

    on_gpu: bool
    ranks: int = 1
    threads: int = 1  # of a rank; they count on the CPU alone
    runs_per_gpu: int = 1
    gpu_type: str = ""  # where it is asked for by name

    def kind(self, config: Config) -> tuple[Any, ...]:
        """Equal for runs whose steps take as long on one model of device, in one precision."""
        share = self.runs_per_gpu if self.on_gpu else self.threads
        step = config.train.model_dump(include=OF_STEP)
        batch = config.train.global_batch / self.ranks
        obstacle = config.train.graph_obstacle(self.on_gpu, self.ranks, config.train.amp)
        as_graph = config.train.graph is not False and not obstacle
        network = config.model.model_dump_json()
        return (self.on_gpu, share, batch, network, as_graph, *step.values())


@dataclass(frozen=True)
class Speed:
    """The speed of runs that are alike, on one model of device."""

    step_s: float
    device: str
    runs: int
    checkpoint: int  # bytes of one
    call_s: float  # of a rank for one network evaluation of one image
    judge_s: float  # for the judgement of one image
    is_drawn: bool  # whether images were drawn; else `call_s` follows from `step_s`

    def __str__(self) -> str:
        return f"{self.runs} run{'s' * (self.runs > 1)} on {self.device}"


@dataclass
class Trained:
    """A run that was trained, or is; its metrics are read when they are needed."""

    run: RunDir
    config: Config
    ranks: int
    device: str
    precisions: tuple[str, str]  # as set, auto say, and as it is

    @cached_property
    def step_s(self) -> float | None:
        """The median of its seconds a step; each attempt's first measurement is its warm-up."""
        first: dict[int, float] = {}
        later = []
        with contextlib.suppress(OSError):
            for line in self.run.lines("speed"):
                if rate := line.get("images_per_s"):
                    batch = self.config.train.global_batch
                    seconds, attempt = batch / rate, line.get("attempt", 0)
                    if attempt in first:
                        later.append(seconds)
                    first.setdefault(attempt, seconds)
        found = later or list(first.values())
        return statistics.median(found) if found else None

    @cached_property
    def figures(self) -> list[Figure]:
        """Those of its last evaluated epoch."""
        with contextlib.suppress(OSError, UserError):  # damaged
            for epoch in reversed(self.run.evaluated_epochs()):
                found = evaluations.read(self.run.evaluation_path(epoch))
                return found.figures if found else []
        return []

    @property
    def calls_s(self) -> Iterator[float]:
        """Seconds of a rank for one network evaluation of one image, of each set of images."""
        for figure in self.figures:
            drawing = figure.drawing
            if drawing is not None and drawing.device == self.device:
                with contextlib.suppress(UserError):  # a sampler of another version
                    spec = SamplerSpec.parse(figure.protocol.sampler, self.config.process)
                    yield drawing.seconds / drawing.images / spec.network_calls

    @property
    def judges_s(self) -> Iterator[float]:
        """Seconds for the judgement of one image, of each figure by the run's extractor."""
        for figure in self.figures:
            is_same = figure.protocol.extractor == self.config.eval.extractor
            if figure.seconds is not None and is_same:
                yield figure.seconds / figure.protocol.images

    @cached_property
    def checkpoint(self) -> int:
        """The bytes of its largest one."""
        with contextlib.suppress(OSError):  # retired meanwhile
            sizes = [file.path.stat().st_size for file in self.run.checkpoint_files()]
            return max(sizes, default=0)
        return 0


class Speeds:
    """The speeds of the runs in these folders."""

    def __init__(self, *folders: Path) -> None:
        self.alike: dict[tuple[Any, ...], list[Trained]] = {}
        paths = [path for folder in folders for path in folder.glob("*/manifest.json")]
        for path in sorted(paths, key=_changed, reverse=True):
            run, found = RunDir(path.parent), files.read_json(path)
            with contextlib.suppress(UserError, KeyError, TypeError):  # damaged, or of old versions
                config, env = run.config(), found["environment"]
                on_gpu, share = env["threads"] is None, found.get("runs_per_gpu", 1)
                place = Place(on_gpu, env["world_size"], env["threads"] or 1, share)
                precisions = (config.train.amp, env["precision"])
                one = Trained(run, config, env["world_size"], str(env["device"]), precisions)
                self.alike.setdefault(place.kind(config), []).append(one)

    def of(self, config: Config, place: Place) -> Speed | None:
        """The speed that a run will have there; on several models of device the slowest one's."""
        by_device: dict[str, list[Trained]] = {}
        for one in self.alike.get(place.kind(config), []):
            if config.train.amp in one.precisions and _bare(place.gpu_type) in _bare(one.device):
                by_device.setdefault(one.device, []).append(one)
        found = []
        for device, runs in by_device.items():
            newest = [one for one in runs[:MOST_ALIKE] if one.step_s is not None]
            if newest:
                step_s = statistics.median(one.step_s or 0.0 for one in newest)
                size = max(one.checkpoint for one in newest)
                calls_s = [seconds for one in newest for seconds in one.calls_s]
                judges_s = [seconds for one in newest for seconds in one.judges_s]
                by_step = step_s * place.ranks / config.train.global_batch / STEP_CALLS
                call_s = statistics.median(calls_s or [by_step])
                judge_s = statistics.median(judges_s or [0.0])
                speed = Speed(step_s, device, len(newest), size, call_s, judge_s, bool(calls_s))
                found.append(speed)
        return max(found, key=lambda speed: speed.step_s, default=None)


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _bare(name: str) -> str:
    """`rtx3090` of `RTX 3090`."""
    return re.sub(r"\W", "", name).lower()
