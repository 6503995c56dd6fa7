"""Small real trainings, and what of a run must be the same bit for bit whatever befell it."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from diffuse import checkpoint
from diffuse.rundir import RunDir
from tests import programs
from tests.drill import program
from tests.programs import TINY

EPOCHS = 3
TIMEOUT_S = 20.0  # of a collective
SMALL = (
    *TINY,
    f"--epochs={EPOCHS}",
    "--threads=1",
    "--device=cpu",
    "--set=eval.at_epochs=1",
    "--set=samples.images=4",
    "--set=samples.steps=2",
    "--set=checkpoint.every_minutes=0.0001",  # nearly every step: many writes to die in
    f"--set=system.collective_timeout_s={TIMEOUT_S}",
)
PRESETS = {
    "ddpm": ("--preset=ddpm/default",),
    "cold": ("--preset=cold/default_28", "--orientation=row"),
}
EVALUATION = {"ddpm": "ddim-2", "cold": "direct,unconditional"}


@dataclass
class Specimen:
    """A training of one preset on `ranks` ranks, and an undisturbed twin to compare with."""

    kind: str
    ranks: int
    folder: Path  # of the twin
    data_dir: Path
    more: tuple[str, ...] = ()
    twin: dict[str, Any] = field(default_factory=dict)
    events: int = 0  # that a kill can be aimed at
    seconds: float = 0.0  # that the twin took

    @classmethod
    def make(
        cls, kind: str, ranks: int, folder: Path, data_dir: Path, more: tuple[str, ...] = ()
    ) -> Specimen:
        """Train and evaluate the twin."""
        specimen = cls(kind, ranks, folder, data_dir, more)
        folder.mkdir(parents=True)
        seen = folder / "events"
        start = time.monotonic()
        specimen.finish(folder, before=program.count_events(folder / "runs", seen))
        specimen.seconds = time.monotonic() - start
        specimen.events = int(seen.read_text() or 0)
        specimen.evaluate(folder)
        specimen.twin = what_counts(programs.only_run(folder / "runs"))
        return specimen

    def arguments(self, folder: Path) -> list[str | Path]:
        """Of diffuse.train, for a run in `folder`."""
        where = (f"--runs-dir={folder / 'runs'}", f"--data-dir={self.data_dir}")
        return [*PRESETS[self.kind], *SMALL, *self.more, *where]

    def start(
        self, folder: Path, before: Callable[[], Any] | None = None, victim: int = 0
    ) -> list[program.Child]:
        """Start its ranks; `before` goes into one of them, `victim`."""
        port = str(random.SystemRandom().randrange(20_000, 32_000))
        children = []
        for rank in range(self.ranks):
            env = {"DRILL": "1"}
            if self.ranks > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks)}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            children.append(
                program.start(
                    "diffuse.train",
                    *self.arguments(folder),
                    log=folder / f"rank{rank}-{len(os.listdir(folder))}.log",
                    before=before if rank == victim else None,
                    **env,
                )
            )
        return children

    def finish(self, folder: Path, before: Callable[[], Any] | None = None) -> None:
        """Train to the end, which must be good."""
        children = self.start(folder, before)
        for child in children:
            code = child.wait(120)
            assert code == 0, f"exit code {code}: {child.said()[-800:]}"

    def evaluation(self, folder: Path) -> list[str | Path]:
        """Arguments of diffuse.evaluate for all epochs of the run in `folder`."""
        run = programs.only_run(folder / "runs")
        few = ("-n", "60", f"--samplers={EVALUATION[self.kind]}")
        return [run.path, *few, "--device=cpu", f"--data-dir={self.data_dir}"]

    def evaluate(self, folder: Path) -> None:
        """Evaluate to the end, which must be good."""
        log = folder / "evaluate.log"
        program.finish("diffuse.evaluate", *self.evaluation(folder), log=log)

    def assert_survived(self, folder: Path) -> None:
        """Go on to the end where need be; all that counts equals the twin's."""
        self.finish(folder)
        self.evaluate(folder)
        run = programs.only_run(folder / "runs")
        programs.assert_same(what_counts(run), self.twin, "")
        left = [p for p in run.path.rglob("*.tmp") if "mnist" not in p.name]
        assert run.status()["state"] == "done"
        assert len(left) <= 40, f"{len(left)} temporary files"


def what_counts(run: RunDir) -> dict[str, Any]:
    """Weights, average, optimizer, losses, samples and figures of a run, as plain values."""
    kept = {}
    for epoch in (1, EPOCHS):
        content = checkpoint.read(run.checkpoint_path(epoch))
        for name in ("environment", "config"):
            del content[name]
        kept[f"epoch {epoch}"] = content
    events = {
        event: programs.strip(run.metrics(event)) for event in ("step", "epoch", "samples")
    }
    return {
        "checkpoints": kept,
        "events": events,
        "samples": {path.name: _datasets(path) for path in sorted(run.samples.glob("[!.]*.h5"))},
        "figures": {path.name: _figures(path) for path in sorted(run.evaluations.glob("*.json"))},
    }


def _datasets(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: file[name][()].tolist() for name in file}


def _figures(path: Path) -> list[Any]:
    return json.loads(path.read_text())["figures"]
