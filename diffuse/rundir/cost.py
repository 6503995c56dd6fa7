"""The cost of a training: hours of GPUs or processor cores, and energy, over a run's attempts.

It is summed over the lines of metrics.jsonl as they were written, so a step that was made twice
costs twice. `seconds` of a line is the age of its attempt then, and `joules` the energy of its
first rank's GPU, which stands for all ranks: a killed attempt counts up to its last line. Lines of
older versions have none; of these, only the time that went into steps counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spent:
    """The cost up to some moment."""

    seconds: float  # of all attempts, from their begin to their last line
    gpu_hours: float
    core_hours: float
    images: int  # seen: steps times the global batch, none twice
    energy_kwh: float = 0.0  # of GPUs whose node tells it

    @property
    def hours(self) -> dict[str, float]:
        """`GPU hours` and `core hours`, those that there are."""
        both = {"GPU hours": self.gpu_hours, "core hours": self.core_hours}
        return {unit: hours for unit, hours in both.items() if hours}


@dataclass
class Cost:
    """The cost of one run; `add` its lines in their order."""

    global_batch: int
    at_epoch: dict[int, Spent] = field(default_factory=dict)  # when its end was first reached
    _attempts: list[_Attempt] = field(default_factory=list)
    _by_number: dict[int, _Attempt] = field(default_factory=dict)
    _step: int = 0  # the last one

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]], global_batch: int) -> Cost:
        """The cost by all lines of metrics.jsonl, `RunDir.lines()`.

        Raises KeyError, TypeError or ValueError where a line is not as this project writes it.
        """
        cost = cls(global_batch)
        for line in lines:
            cost.add(line)
        return cost

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one line. Those of an attempt whose `start` is damaged are left out."""
        event, number, step = line["event"], line.get("attempt", 0), int(line.get("step") or 0)
        if event == "start":
            self._attempts.append(_Attempt(line, step))
            self._by_number[number] = self._attempts[-1]
        attempt = self._by_number.get(number)
        if attempt is None:
            return
        if event in ("speed", "end") and "seconds" in line:
            attempt.seconds = float(line["seconds"])
            attempt.joules = float(line.get("joules") or 0.0)
        if event == "speed":
            attempt.advance(step, self.global_batch, float(line["images_per_s"]))
            self._step = max(self._step, step)
        if event == "epoch":
            self.at_epoch.setdefault(int(line["epoch"]), self._spent(step))

    @property
    def total(self) -> Spent:
        """The cost so far."""
        return self._spent(self._step)

    @property
    def images_per_s(self) -> float:
        """Images a second while training, without pictures, checkpoints and evaluations."""
        stepping = math.fsum(attempt.stepping for attempt in self._attempts)
        images = sum(attempt.images for attempt in self._attempts)
        return images / stepping if stepping else 0.0

    @property
    def device(self) -> str:
        """`2 x NVIDIA H100` or `AMD EPYC, 4 cores`; several of a run that was moved."""
        return "; ".join(dict.fromkeys(attempt.device for attempt in self._attempts))

    def _spent(self, step: int) -> Spent:
        of_gpus = [a.used * a.ranks / a.sharing for a in self._attempts if not a.threads]
        of_cores = [a.used * a.ranks * a.threads for a in self._attempts]
        return Spent(
            seconds=math.fsum(a.used for a in self._attempts),
            gpu_hours=math.fsum(of_gpus) / 3600,
            core_hours=math.fsum(of_cores) / 3600,
            images=step * self.global_batch,
            energy_kwh=math.fsum(a.joules * a.ranks / a.sharing for a in self._attempts) / 3.6e6,
        )


class _Attempt:
    """One start of a run, on devices of its own."""

    def __init__(self, start: Mapping[str, Any], step: int) -> None:
        """
        Args:
            start: its first event, which holds its environment.
            step: that it goes on from.
        """
        self.ranks = int(start.get("world_size") or 1)
        self.threads = int(start.get("threads") or 0)  # of a rank on the CPU; 0: on a GPU
        self.sharing = int(start.get("runs_per_gpu") or 1)  # runs on each GPU, this one too
        name = str(start.get("device") or "unknown")
        cores = self.ranks * self.threads
        self.device = f"{name}, {cores} core{'s' * (cores > 1)}" if cores else name
        if not cores and self.ranks > 1:
            self.device = f"{self.ranks} x {name}"
        if not cores and self.sharing > 1:
            self.device += f", shared by {self.sharing} runs"
        self.step = step
        self.images = 0
        self.stepping = 0.0  # seconds that went into steps
        self.joules = 0.0
        self.seconds: float | None = None  # since its begin; None: of an older version

    @property
    def used(self) -> float:
        """Seconds for which it held its devices."""
        return self.stepping if self.seconds is None else self.seconds

    def advance(self, step: int, global_batch: int, images_per_s: float) -> None:
        """The steps up to `step` were made at this rate."""
        images = (step - self.step) * global_batch
        self.step, self.images = step, self.images + images
        self.stepping += images / images_per_s if images_per_s else 0.0
