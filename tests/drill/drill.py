"""The means of each part of the drill."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.drill.specimen import Specimen
from tests.drill.tally import Tally


@dataclass
class Drill:
    """A seed, a folder, the tally, and how much to do.

    Args:
        share: of the usual number of trials; each fault is tried at least once.
    """

    seed: int
    share: float
    folder: Path
    data_dir: Path
    tally: Tally
    part: str = ""
    specimens: dict[tuple[str, int], Specimen] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def rng(self, *about: object) -> random.Random:
        """Random numbers that follow from the seed and from their purpose."""
        return random.Random(f"{self.seed} {self.part} {about}")

    def times(self, usual: int) -> range:
        """The trials of a fault."""
        return range(max(1, round(usual * self.share)))

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        self.tally.console.print(f"{self.part}: {text}", highlight=False)

    @contextmanager
    def trial(self, fault: str, faults: int = 1) -> Iterator[Path]:
        """One trial, of several faults perhaps, in a folder of its own."""
        folder = self.folder / f"{next(self.numbers):04d}"
        with self.tally.trial(self.part, fault, folder, faults):
            yield folder

    def specimen(self, kind: str, ranks: int = 1) -> Specimen:
        """The training of a kind, its twin made when first asked for."""
        key = (kind, ranks)
        if key not in self.specimens:
            folder = self.folder / f"twin-{kind}-{ranks}"
            self.specimens[key] = Specimen.make(kind, ranks, folder, self.data_dir)
        return self.specimens[key]
